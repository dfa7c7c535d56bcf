# SPDX-License-Identifier: Apache-2.0
"""Authorization by a list of rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.objects.authz import AuthzObject
from vhostblk.objects.authz_rules import allows
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.authz import AuthZListProperties

if TYPE_CHECKING:
    from vhostblk.schema.object import ObjectOptions


class AuthzListObject(AuthzObject):
    """The rules are properties, which `qom-set` changes."""

    options_type: ClassVar[type[ObjectOptions]] = AuthZListProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "authz-list",
            "authz",
            interface="user-creatable",
            properties={"policy": "QAuthZListPolicy", "rules": "QAuthZListRule"},
        )
    )

    options: AuthZListProperties

    def is_allowed(self, identity: str) -> bool:
        """Look for the first rule that fits."""
        return allows(self.options, identity)
