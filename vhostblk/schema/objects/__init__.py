# SPDX-License-Identifier: Apache-2.0
"""Options of the object types, one module for each kind."""
