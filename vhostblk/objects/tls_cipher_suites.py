# SPDX-License-Identifier: Apache-2.0
"""Cipher suites by a priority string, which QEMU's emulator hands to a guest's firmware.

A storage daemon has no firmware. The object takes what QEMU's takes, so that one configuration
serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.errors import VhostblkError
from vhostblk.objects.base import UserObject
from vhostblk.objects.tls_creds import TLS_CREDS
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.tls_creds import TlsCipherSuitesProperties

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions


class TlsCipherSuitesObject(UserObject):
    """A priority string."""

    options_type: ClassVar[type[ObjectOptions]] = TlsCipherSuitesProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("tls-cipher-suites", TLS_CREDS.name, interface="user-creatable")
    )

    def __init__(self, options: TlsCipherSuitesProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        if not isinstance(options.priority, str):
            raise VhostblkError("'priority' property is not set")

    def remove(self) -> None:
        """Nothing uses it."""
