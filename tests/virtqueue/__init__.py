# SPDX-License-Identifier: Apache-2.0
"""Rings: the walker and the split queue."""
