# SPDX-License-Identifier: Apache-2.0
"""`Branches`: the structs of an open union, built in and of plug-ins."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.schema.plugins import PluginFinder


class Branches:
    """Finds branches by their tags; modules are imported when they are first asked for."""

    def __init__(
        self,
        package: str,
        built_in: Mapping[str, tuple[str, str]],
        plugins: PluginFinder,
        unavailable: Mapping[str, str],
    ) -> None:
        """`built_in`: a module of `package` and the struct in it, by tag.

        `unavailable`: QEMU's branches that are not here, and what is to be said of them.
        """
        self._package = package
        self._built_in = built_in
        self._plugins = plugins
        self._unavailable = unavailable

    def find(self, tag: str) -> Any:
        """Return a struct, None where there is none; raises OptionError."""
        if tag in self._unavailable:
            raise OptionError(self._unavailable[tag])
        where = self._built_in.get(tag)
        if where is None:
            return self._plugins.find_options(tag)
        module, name = where
        return getattr(importlib.import_module(f"{self._package}.{module}"), name)

    def names(self) -> list[str]:
        """Return all tags, those of plug-ins last."""
        others = self._plugins.names()
        return [*self._built_in, *(name for name in others if name not in self._built_in)]
