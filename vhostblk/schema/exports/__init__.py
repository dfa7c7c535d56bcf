# SPDX-License-Identifier: Apache-2.0
"""Options of the export types, a module each."""
