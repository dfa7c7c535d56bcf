# SPDX-License-Identifier: Apache-2.0
"""Driver classes by QAPI name.

Built-in drivers are listed in `schema.driver_manifest`, and imported on first use. Plug-ins add
drivers of third parties: `schema.plugins` finds them, and `vhostblk.plugin` is the interface to
write them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.imports import load
from vhostblk.schema import plugins
from vhostblk.schema.branches import Parts
from vhostblk.schema.driver_manifest import DRIVERS, PLUGIN_NODE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.graph.node import BlockNode

_NODES = Parts(DRIVERS, "node")
_CREATORS = Parts(DRIVERS, "create")


def driver_name(options: Any) -> str:
    """Return the QAPI name of the driver that an options struct is for."""
    return str(type(options).__struct_config__.tag)


def is_built_in(name: str) -> bool:
    """Return whether a driver is part of vhostblk."""
    return name in _NODES


def driver_class(name: str) -> type[BlockNode]:
    """Return a driver's class. Raises BlockError if unknown, OptionError for a broken plug-in."""
    found = built_in_class(name)
    if found is None:
        found = _plugin_class(name)
    return found


def built_in_class(name: str) -> type[BlockNode] | None:
    """Return the class of a built-in driver; None: there is no such driver."""
    where = _NODES.get(name)
    return None if where is None else load(where)


def _plugin_class(name: str) -> type[BlockNode]:
    found = plugins.DRIVERS.find_class(name)
    if found is None:
        raise BlockError(f"Unknown driver '{name}'")
    made: type[BlockNode] = load(PLUGIN_NODE)(found)
    return made


def creator(name: str) -> Callable[..., Awaitable[None]] | None:
    """Return the function that creates images (`Driver.create`); None: not supported."""
    where = _CREATORS.get(name)
    return None if where is None else load(where)
