# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps."""
