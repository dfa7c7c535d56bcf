# SPDX-License-Identifier: Apache-2.0
"""Authorization of one name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.objects.authz import AuthzObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.authz import AuthZSimpleProperties

if TYPE_CHECKING:
    from vhostblk.schema.object import ObjectOptions


class AuthzSimpleObject(AuthzObject):
    """One name is allowed."""

    options_type: ClassVar[type[ObjectOptions]] = AuthZSimpleProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "authz-simple",
            "authz",
            interface="user-creatable",
            properties={"identity": "string"},
        )
    )

    options: AuthZSimpleProperties

    def is_allowed(self, identity: str) -> bool:
        """Compare the names."""
        return identity == self.options.identity
