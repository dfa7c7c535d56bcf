# SPDX-License-Identifier: Apache-2.0
"""Exports: block nodes that clients can use; one package for each export type."""
