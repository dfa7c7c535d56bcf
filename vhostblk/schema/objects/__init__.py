# SPDX-License-Identifier: Apache-2.0
"""Options of the object types, a module each."""
