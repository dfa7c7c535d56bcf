# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` (`qapi/qom.json`).

What is an object type's own is in `schema.objects`, loaded when it is first named.
"""

from __future__ import annotations

from typing import NamedTuple

from vhostblk.schema import plugins
from vhostblk.schema.base import OpenUnion
from vhostblk.schema.branches import Branches, Parts


class ObjectOptions(OpenUnion, tag_field="qom-type", kw_only=True, frozen=True):
    """Members common to all objects."""

    id: str

    @classmethod
    def find_branch(cls, tag: str) -> type[ObjectOptions] | None:
        """Return the options of an object type; raises OptionError for a plug-in that is broken."""
        found: type[ObjectOptions] | None = _BRANCHES.find(tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all object types, plug-ins included."""
        return _BRANCHES.names()


class ObjectType(NamedTuple):
    """The parts of an object type, `module:name`, which are imported when they are first used."""

    #: A subclass of `ObjectOptions`.
    options: str
    #: A subclass of `objects.base.UserObject`.
    made_of: str


#: The table of object types. Those of other packages are found by `schema.plugins`.
OBJECT_TYPES: dict[str, ObjectType] = {
    "iothread": ObjectType(
        "vhostblk.schema.objects.iothread:IothreadProperties",
        "vhostblk.objects.iothread:IothreadObject",
    ),
    "throttle-group": ObjectType(
        "vhostblk.schema.objects.throttle_group:ThrottleGroupProperties",
        "vhostblk.objects.throttle_group:ThrottleGroupObject",
    ),
}

_BRANCHES = Branches(Parts(OBJECT_TYPES, "options"), plugins.OBJECTS, {})
