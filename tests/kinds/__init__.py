# SPDX-License-Identifier: Apache-2.0
"""Export types and object types of other packages: one module each, found by an entry point."""
