# SPDX-License-Identifier: Apache-2.0
"""What all authorization objects have in common."""

from __future__ import annotations

from typing import Any

from vhostblk.net.authorization import Authorizer
from vhostblk.objects.base import UserObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.options import object_options

register_type(QomType("authz", "object", abstract=True))


class AuthzObject(UserObject, Authorizer):
    """Rules that are asked by their id each time, so a change counts at once."""

    @property
    def offer(self) -> object:
        """The rules."""
        return self

    def remove(self) -> None:
        """Nothing is kept elsewhere; peers that name it are refused from now on."""

    def write(self, name: str, value: object) -> None:
        """Change a property; the former value stays where the new one is invalid."""
        plain: dict[str, Any] = self.definition()
        self.options = object_options({**plain, name: value})
