# SPDX-License-Identifier: Apache-2.0
"""Filters, held against QEMU's: `harness` runs a script on both daemons."""
