# SPDX-License-Identifier: Apache-2.0
"""Secrets in the kernel's keyring."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.crypto.errors import SecretError
from vhostblk.crypto.keyring import read_key
from vhostblk.errors import errors_as
from vhostblk.objects.secret import CommonSecret
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.secret import SecretKeyringProperties

if TYPE_CHECKING:
    from vhostblk.crypto.secret_bytes import SecretBytes
    from vhostblk.schema.object import ObjectOptions


class SecretKeyringObject(CommonSecret):
    """A secret that the kernel keeps, read once."""

    options_type: ClassVar[type[ObjectOptions]] = SecretKeyringProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("secret_keyring", "secret_common", properties={"serial": "int32_t"})
    )

    options: SecretKeyringProperties

    def load(self) -> SecretBytes:
        """Read the key."""
        serial = self.options.serial
        what = f"Unable to read serial key {serial & 0xFFFF_FFFF:08x}"
        with errors_as(SecretError, what):
            found = read_key(serial)
        if not len(found):
            raise SecretError(f"{what}: the key is empty")
        return found
