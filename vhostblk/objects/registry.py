# SPDX-License-Identifier: Apache-2.0
"""The classes of object types (the table is in `schema.object`), and the objects of a daemon."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vhostblk.crypto.keys import Keys
from vhostblk.errors import VhostblkError
from vhostblk.imports import load
from vhostblk.objects.base import Surroundings, UserObject
from vhostblk.schema import plugins
from vhostblk.schema.branches import Parts
from vhostblk.schema.object import OBJECT_TYPES
from vhostblk.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.block.graph.graph import Graph
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.schema.object import ObjectOptions

_CLASSES = Parts(OBJECT_TYPES, "made_of")


def object_class(name: str) -> type[UserObject]:
    """Return the class of an object type; raises VhostblkError for a bad plug-in."""
    if name in _CLASSES:
        found: Any = load(_CLASSES[name])
    else:
        found = plugins.OBJECTS.find_class(name)
        if not (isinstance(found, type) and issubclass(found, UserObject)):
            raise VhostblkError(f"Object type '{name}' is no subclass of UserObject")
    checked: type[UserObject] = found
    return checked


def load_all() -> None:
    """Import all types, so that the object tree's table has them."""
    for name in (*_CLASSES, *plugins.OBJECTS.names()):
        object_class(name)


class Objects:
    """The objects of one daemon, by id."""

    def __init__(self, graph: Graph, iothreads: Iothreads) -> None:
        self._objects: dict[str, UserObject] = {}
        #: Ids of objects that are being made on a thread.
        self._reserved: set[str] = set()
        #: The objects, for others to look at.
        self.by_id: Mapping[str, UserObject] = MappingProxyType(self._objects)
        self.keys = Keys(self.by_id)
        self._around = Surroundings(graph, iothreads, self.keys)

    def add(self, options: ObjectOptions) -> None:
        """Make an object; raises VhostblkError."""
        self._check(options.id)
        made_of = object_class(str(options.__struct_config__.tag))
        made = self._objects[options.id] = made_of(options, self._around)
        made.added()

    async def add_in_background(self, options: ObjectOptions) -> None:
        """Make an object while the event loop goes on; raises VhostblkError."""
        made_of = object_class(str(options.__struct_config__.tag))
        if not made_of.reads_files:
            self.add(options)
            return
        self._check(options.id)
        self._reserved.add(options.id)
        try:
            made = await in_thread(lambda: made_of(options, self._around))
        finally:
            self._reserved.discard(options.id)
        self._objects[options.id] = made
        made.added()

    def _check(self, object_id: str) -> None:
        """Refuse an id that is taken; "type" is a property that all objects have."""
        if object_id in self._objects or object_id in self._reserved or object_id == "type":
            raise VhostblkError(
                f"attempt to add duplicate property '{object_id}' to object (type 'container')"
            )

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
        """Remove all, the last first; what used them has been closed."""
        while self._objects:
            _, found = self._objects.popitem()
            found.discard()
