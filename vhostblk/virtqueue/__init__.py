# SPDX-License-Identifier: Apache-2.0
"""Virtqueues as numpy arrays."""
