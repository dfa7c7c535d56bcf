# SPDX-License-Identifier: Apache-2.0
"""The table of object types, and the objects of a daemon."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vhostblk.errors import VhostblkError
from vhostblk.objects.base import UserObject
from vhostblk.schema import plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions

#: Where the object types are that come with vhostblk: module and class, by type.
_BUILT_IN = {
    "iothread": ("vhostblk.objects.iothread", "IothreadObject"),
    "pr-manager-helper": ("vhostblk.objects.pr_manager", "PrManagerHelperObject"),
    "throttle-group": ("vhostblk.objects.throttle_group", "ThrottleGroupObject"),
    "x-vhostblk-pr-manager-kernel": ("vhostblk.objects.pr_manager", "PrManagerKernelObject"),
}


def object_class(name: str) -> type[UserObject]:
    """Return the class of an object type; raises VhostblkError for a bad plug-in."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        found: Any = getattr(importlib.import_module(module), attribute)
    else:
        found = plugins.OBJECTS.find_class(name)
        if not (isinstance(found, type) and issubclass(found, UserObject)):
            raise VhostblkError(f"Object type '{name}' is no subclass of UserObject")
    checked: type[UserObject] = found
    return checked


def load_all() -> None:
    """Import all types, so that the object tree's table has them."""
    for name in (*_BUILT_IN, *plugins.OBJECTS.names()):
        object_class(name)


class Objects:
    """The objects of one daemon, by id."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._objects: dict[str, UserObject] = {}
        #: The objects, for others to look at.
        self.by_id: Mapping[str, UserObject] = MappingProxyType(self._objects)

    def add(self, options: ObjectOptions) -> None:
        """Make an object; raises VhostblkError."""
        if options.id in self._objects or options.id == "type":  # a property that all objects have
            raise VhostblkError(
                f"attempt to add duplicate property '{options.id}' to object (type 'container')"
            )
        made_of = object_class(str(options.__struct_config__.tag))
        made = self._objects[options.id] = made_of(options, self._around)
        made.added()

    def find(self, object_id: str) -> UserObject:
        """Return an object; raises VhostblkError."""
        found = self._objects.get(object_id)
        if found is None:
            raise VhostblkError(f"object '{object_id}' not found")
        return found

    def remove(self, object_id: str, *, in_use: bool) -> None:
        """Remove an object; raises VhostblkError where it is used, also by what it doesn't know."""
        found = self.find(object_id)
        if in_use or found.in_use:
            raise VhostblkError(f"object '{object_id}' is in use, can not be deleted")
        del self._objects[object_id]
        found.remove()

    def clear(self) -> None:
        """Forget all; what used them has been closed."""
        self._objects.clear()
