# SPDX-License-Identifier: Apache-2.0
"""`test-lamp`: a lamp that can be switched."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace

from tests.kinds.lamp.options import LampOptions
from vhostblk.objects.base import UserObject
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type

if TYPE_CHECKING:
    from vhostblk.schema.object import ObjectOptions


class Lamp(UserObject):
    """A lamp."""

    options_type: ClassVar[type[ObjectOptions]] = LampOptions
    qom_type: ClassVar[QomType] = register_type(
        QomType("test-lamp", "object", False, "user-creatable", {"on": "bool"})
    )

    def remove(self) -> None:
        """Remove the lamp; nothing needs to be done."""

    def write(self, name: str, value: object) -> None:
        """Switch the lamp."""
        if not isinstance(value, bool):
            raise PropertyError(f"Invalid parameter type for '{name}', expected: boolean")
        self.options = replace(self.options, on=value)
