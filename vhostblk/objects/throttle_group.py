# SPDX-License-Identifier: Apache-2.0
"""Throttle groups: limits that `throttle` nodes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from vhostblk.objects.base import UserObject
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.base import QapiStruct
from vhostblk.schema.convert import from_json
from vhostblk.schema.objects.throttle_group import ThrottleGroupProperties
from vhostblk.schema.throttle import UNLIMITED, ThrottleLimits, changed_limits

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions


class _LimitsProperty(QapiStruct, kw_only=True, frozen=True):
    """The property that is a struct, under its name, which messages tell."""

    limits: ThrottleLimits


class ThrottleGroupObject(UserObject):
    """One group."""

    options_type: ClassVar[type[ObjectOptions]] = ThrottleGroupProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "throttle-group",
            "object",
            False,
            "user-creatable",
            {
                **{f"x-{name}": "int" for name in UNLIMITED.__struct_encode_fields__},
                "limits": "ThrottleLimits",
            },
        )
    )

    def __init__(self, options: ThrottleGroupProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        groups = around.graph.throttle_groups
        groups.add(self.id, options.initial_limits())
        self._group = groups.find(self.id)

    def remove(self) -> None:
        """Forget the group."""
        self.around.graph.throttle_groups.remove(self.id)

    @property
    def in_use(self) -> bool:
        """Whether a node is a member."""
        return self._group.in_use

    def definition(self) -> dict[str, Any]:
        """Return the limits as they are now."""
        limits = msgspec.to_builtins(self._group.limits)
        return {"qom-type": self.qom_type.name, "id": self.id, "limits": limits}

    def read(self, name: str) -> object:
        """Return all limits, or a single one."""
        limits = msgspec.to_builtins(self._group.limits)
        return limits if name == "limits" else limits[name.removeprefix("x-")]

    def write(self, name: str, value: object) -> None:
        """Change limits; those not named stay."""
        if name != "limits":
            raise PropertyError("Property cannot be set after initialization")
        change = from_json(_LimitsProperty, {name: value}).limits
        self._group.set_limits(changed_limits(self._group.limits, change))
