# SPDX-License-Identifier: Apache-2.0
"""How QAPI types are written down here.

A QAPI struct is a `QapiStruct`: member names are the wire's in snake case (`node_name` is
`node-name`), a member with a default is optional, `UNSET` is the default where absence means
something of its own. A flat union is a Python union of structs that share a tag. Each class repeats
`kw_only` (which msgspec does not inherit) and `frozen` (which type checkers do not).
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

__all__ = ["UNSET", "QapiStruct", "UnsetType"]


class QapiStruct(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"
):
    """Base of all QAPI structs."""
