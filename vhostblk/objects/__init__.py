# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: what `object-add` makes, a module each type."""
