# SPDX-License-Identifier: Apache-2.0
"""Plug-ins: drivers, export types and object types of other packages.

A package names them in an entry point group: `vhostblk.drivers`, `vhostblk.exports` or
`vhostblk.objects`. Reading entry points takes 20 ms, so it is done only for names that are not
built in, and for lists. An entry point refers to a class; its `options_type` is the struct of its
options. The layer that uses the class checks the rest.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)


class PluginFinder:
    """A finder of classes of one kind, by the tags of their options."""

    def __init__(self, what: str, group: str, union: tuple[str, str]) -> None:
        """`what`: the kind, for messages; `union`: module and name of the options' base class."""
        self._what = what
        self.group = group
        self._union = union
        #: Classes by name: registered by the program, or loaded from packages.
        self.registered: dict[str, Any] = {}
        self.loaded: dict[str, Any] = {}

    def register(self, found: Any) -> None:
        """Add a class without a package, for this process; raises OptionError."""
        name = _tag(found)
        self._check(name, found)
        self.registered[name] = found

    def find_class(self, name: str) -> Any:
        """Return a class; None if no package offers it. Raises OptionError if it is broken."""
        found = self.registered.get(name, self.loaded.get(name))
        if found is None:
            entry_point = self._one_of(name)
            found = entry_point and self._load(entry_point)
        return found

    def find_options(self, name: str) -> Any:
        """Return the struct of a class's options; None and errors as for `find_class()`."""
        found = self.find_class(name)
        return None if found is None else found.options_type

    def names(self) -> list[str]:
        """Return the sorted names of all classes that can be loaded; errors are logged."""
        found = set(self.registered)
        for name in {entry_point.name for entry_point in self._entry_points()}:
            try:
                self.find_class(name)
            except OptionError as error:
                logger.warning("%s", error)
            else:
                found.add(name)
        return sorted(found)

    def takes(self, options: Any) -> bool:
        """Return whether a struct of options is for this kind."""
        return isinstance(options, type) and issubclass(options, self._union_class())

    def _union_class(self) -> type:
        module, name = self._union
        found: type = getattr(importlib.import_module(module), name)
        return found

    def _entry_points(self) -> list[EntryPoint]:
        from importlib.metadata import entry_points  # 20 ms

        return list(entry_points(group=self.group))

    def _one_of(self, name: str) -> EntryPoint | None:
        """Return the entry point of a name; a package that is on the path twice offers it twice."""
        offered = [entry_point for entry_point in self._entry_points() if entry_point.name == name]
        values = sorted({entry_point.value for entry_point in offered})
        if len(values) > 1:
            raise OptionError(
                f"{self._what} '{name}' is provided more than once: by {', '.join(values)}"
            )
        return offered[0] if offered else None

    def _load(self, entry_point: EntryPoint) -> Any:
        name = entry_point.name
        try:
            found = entry_point.load()
        except (Exception, SystemExit) as error:
            raise OptionError(f"{self._what} '{name}' can't be loaded: {error}") from error
        try:
            self._check(name, found)
        except OptionError as error:
            raise OptionError(f"{error} ({entry_point.value})") from None
        self.loaded[name] = found
        return found

    def _check(self, name: Any, found: Any) -> None:
        options = getattr(found, "options_type", None)
        if not (isinstance(found, type) and self.takes(options)):
            raise OptionError(
                f"{self._what} '{name}' is not a class with options_type, a struct of options"
            )
        tag = _tag(found)
        if tag != name:
            raise OptionError(f"{self._what} '{name}' has options with the tag '{tag}'")


DRIVERS = PluginFinder(
    "Driver", "vhostblk.drivers", ("vhostblk.schema.blockdev", "BlockdevOptions")
)
EXPORTS = PluginFinder(
    "Export type", "vhostblk.exports", ("vhostblk.schema.export", "BlockExportOptions")
)
OBJECTS = PluginFinder(
    "Object type", "vhostblk.objects", ("vhostblk.schema.object", "ObjectOptions")
)


def register(found: Any) -> None:
    """Add a driver, an export type or an object type for this process; raises OptionError."""
    options = getattr(found, "options_type", None)
    kind = next((kind for kind in (EXPORTS, OBJECTS) if kind.takes(options)), DRIVERS)
    kind.register(found)


def _tag(found: Any) -> Any:
    """Return the tag of a class's options, or the class itself if there is no tag."""
    config = getattr(getattr(found, "options_type", None), "__struct_config__", None)
    return getattr(config, "tag", found)
