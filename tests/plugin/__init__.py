# SPDX-License-Identifier: Apache-2.0
"""Drivers that others write."""
