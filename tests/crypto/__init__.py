# SPDX-License-Identifier: Apache-2.0
"""Secrets: their memory, files and formats."""
