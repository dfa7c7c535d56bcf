# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` (`qapi/qom.json`).

What is an object type's own is in `schema.objects`, loaded when it is first named.
"""

from __future__ import annotations

from vhostblk.schema import plugins
from vhostblk.schema.base import OpenUnion
from vhostblk.schema.branches import Branches


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


_BRANCHES = Branches(
    "vhostblk.schema.objects",
    {
        "iothread": ("iothread", "IothreadProperties"),
        "pr-manager-helper": ("pr_manager", "PrManagerHelperProperties"),
        "throttle-group": ("throttle_group", "ThrottleGroupProperties"),
        "x-vhostblk-pr-manager-kernel": ("pr_manager", "PrManagerKernelProperties"),
    },
    plugins.OBJECTS,
    {},
)
