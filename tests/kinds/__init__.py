# SPDX-License-Identifier: Apache-2.0
"""Examples for the recipes of CONTRIBUTING.md: a module or folder for each."""
