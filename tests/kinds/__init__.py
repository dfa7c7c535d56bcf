# SPDX-License-Identifier: Apache-2.0
"""Examples for the recipes of CONTRIBUTING.md: one module or folder each."""
