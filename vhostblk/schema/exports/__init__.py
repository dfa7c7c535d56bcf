# SPDX-License-Identifier: Apache-2.0
"""Options of the export types, one module for each type."""
