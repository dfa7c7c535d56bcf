# SPDX-License-Identifier: Apache-2.0
"""Base classes for QAPI types.

A QAPI struct is a `QapiStruct`. Member names are QAPI's in snake case (`node_name` is `node-name`).
A member with a default is optional. The default is `UNSET` if an absent member has a meaning of its
own. A flat union is a Python union of structs that share a tag, or an `OpenUnion`. Each class
repeats `kw_only` (which msgspec does not inherit) and `frozen` (which type checkers do not
inherit).
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
    """A flat union whose branches are looked up by name when they are needed.

    A direct subclass is the union, with the members common to all branches. Branches derive from
    it.
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
        """Check values that have the right types; raises OptionError."""
