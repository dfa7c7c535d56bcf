# SPDX-License-Identifier: Apache-2.0
"""`Branches`: the structs of an open union, with plug-ins. `Parts`: a column of a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.imports import load
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.schema.plugins import PluginFinder


class Parts(Mapping[str, str]):
    """A column of a table of types: one part of each entry, by the entry's name."""

    def __init__(self, table: Mapping[str, Any], kind: str) -> None:
        """`table` may change: its entries are looked up at each access."""
        self._table = table
        self._kind = kind

    def __getitem__(self, name: str) -> str:
        part: str = getattr(self._table[name], self._kind)
        if not part:
            raise KeyError(name)
        return part

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._table if name in self)

    def __contains__(self, name: object) -> bool:
        return name in self._table and bool(getattr(self._table[str(name)], self._kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Branches:
    """The branches by their tags; modules are imported when they are first needed."""

    def __init__(
        self,
        built_in: Mapping[str, str],
        plugins: PluginFinder | None,
        unavailable: Mapping[str, str],
    ) -> None:
        """`built_in`: the structs by tag, as `module:name`.

        `unavailable`: QEMU's branches that are not available, and the messages for them.
        """
        self._built_in = built_in
        self._plugins = plugins
        self._unavailable = unavailable

    def find(self, tag: str) -> Any:
        """Return a struct, or None; raises OptionError."""
        if tag in self._unavailable:
            raise OptionError(self._unavailable[tag])
        where = self._built_in.get(tag)
        if where is None:
            return None if self._plugins is None else self._plugins.find_options(tag)
        return load(where)

    def names(self) -> list[str]:
        """Return all tags, the tags of plug-ins last."""
        others = [] if self._plugins is None else self._plugins.names()
        return [*self._built_in, *(name for name in others if name not in self._built_in)]


@functools.cache
def without_members(union: type[msgspec.Struct], tag: str) -> Any:
    """Return a new branch without members of its own."""
    name = f"{union.__name__}None"
    return msgspec.defstruct(name, [], bases=(union,), tag=tag, kw_only=True, frozen=True)
