# SPDX-License-Identifier: Apache-2.0
"""Drivers that are not built in: found by name, in packages and among those registered.

A package names its drivers in the entry point group `vhostblk.drivers`. Looking there costs 20 ms:
it is done only for names that are not built in, and for listings. What is found is the driver's
class; its `options_type` is the struct of its options. The rest is for the block layer to check.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from vhostblk.schema.blockdev import BlockdevOptions

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "vhostblk.drivers"

#: Classes by name: those that the program registered, and those that have been loaded.
_registered: dict[str, Any] = {}
_loaded: dict[str, Any] = {}


def register(driver_class: Any) -> None:
    """Add a driver without a package, for this process; raises OptionError."""
    options = getattr(driver_class, "options_type", None)
    config = getattr(options, "__struct_config__", None)
    name = getattr(config, "tag", driver_class)
    _check(name, driver_class)
    _registered[name] = driver_class


def find_class(name: str) -> Any:
    """Return a driver's class; None where nobody offers it. Raises OptionError if it is broken."""
    found = _registered.get(name, _loaded.get(name))
    if found is None:
        entry_point = _one_of(name)
        found = entry_point and _load(entry_point)
    return found


def find_options(name: str) -> type[BlockdevOptions] | None:
    """Return the struct of a driver's options; None and errors as for `find_class()`."""
    found = find_class(name)
    if found is None:
        return None
    options: type[BlockdevOptions] = found.options_type
    return options


def names() -> list[str]:
    """Return the names of all drivers that can be loaded, sorted; the others are logged."""
    found = set(_registered)
    for name in {entry_point.name for entry_point in _entry_points()}:
        try:
            find_class(name)
        except OptionError as error:
            logger.warning("%s", error)
        else:
            found.add(name)
    return sorted(found)


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms

    return list(entry_points(group=ENTRY_POINT_GROUP))


def _one_of(name: str) -> EntryPoint | None:
    """Find what a name stands for; a package that is on the path twice offers the same twice."""
    offered = [entry_point for entry_point in _entry_points() if entry_point.name == name]
    values = sorted({entry_point.value for entry_point in offered})
    if len(values) > 1:
        raise OptionError(f"Driver '{name}' is provided more than once: by {', '.join(values)}")
    return offered[0] if offered else None


def _load(entry_point: EntryPoint) -> Any:
    name = entry_point.name
    try:
        found = entry_point.load()
    except (Exception, SystemExit) as error:
        raise OptionError(f"Driver '{name}' can't be loaded: {error}") from error
    try:
        _check(name, found)
    except OptionError as error:
        raise OptionError(f"{error} ({entry_point.value})") from None
    _loaded[name] = found
    return found


def _check(name: Any, found: Any) -> None:
    from vhostblk.schema.blockdev import BlockdevOptions

    options = getattr(found, "options_type", None)
    if not (
        isinstance(found, type)
        and isinstance(options, type)
        and issubclass(options, BlockdevOptions)
    ):
        raise OptionError(f"Driver '{name}' is not a class with options_type, a struct of options")
    tag = options.__struct_config__.tag
    if tag != name:
        raise OptionError(f"Driver '{name}' has options with the tag '{tag}'")
