# SPDX-License-Identifier: Apache-2.0
"""How QAPI types are written down here.

A QAPI struct is a `QapiStruct`: member names are the wire's in snake case (`node_name` is
`node-name`), a member with a default is optional, `UNSET` is the default where absence means
something of its own. A flat union is a Python union of structs that share a tag, or an `OpenUnion`.
Each class repeats `kw_only` (which msgspec does not inherit) and `frozen` (which type checkers do
not).
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

__all__ = ["UNSET", "OpenUnion", "QapiStruct", "UnsetType"]


class QapiStruct(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"
):
    """Base of all QAPI structs."""


class OpenUnion(QapiStruct, kw_only=True, frozen=True):
    """A flat union whose branches are found by name, when they are needed.

    A direct subclass is the union, with the members common to its branches; those derive from it.
    """

    @classmethod
    def find_branch(cls, tag: str) -> type[OpenUnion] | None:
        """Return the struct of a branch."""
        raise NotImplementedError

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the tags of all branches."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse values that have the right types and still make no sense; raises OptionError."""
