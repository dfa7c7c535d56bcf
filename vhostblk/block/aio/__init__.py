# SPDX-License-Identifier: Apache-2.0
"""Asynchronous file I/O."""
