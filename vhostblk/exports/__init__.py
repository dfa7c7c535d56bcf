# SPDX-License-Identifier: Apache-2.0
"""Exports: block nodes shown to clients, one module an export type."""
