# SPDX-License-Identifier: Apache-2.0
"""Options of secrets."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import Int32  # noqa: TC001 (read at run time)
from vhostblk.schema.errors import OptionError
from vhostblk.schema.object import ObjectOptions


class QCryptoSecretFormat(Enum):
    """The encoding of a secret."""

    RAW = "raw"
    BASE64 = "base64"


class SecretProperties(ObjectOptions, tag="secret", kw_only=True, frozen=True):
    """A secret, given literally or in a file."""

    format: QCryptoSecretFormat = QCryptoSecretFormat.RAW
    #: The id of the secret with the encryption key, and the initialization vector in Base64.
    keyid: str | UnsetType = UNSET
    iv: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    file: str | UnsetType = UNSET


class SecretKeyringProperties(ObjectOptions, tag="secret_keyring", kw_only=True, frozen=True):
    """A secret in the kernel's keyring, by its serial number."""

    format: QCryptoSecretFormat = QCryptoSecretFormat.RAW
    keyid: str | UnsetType = UNSET
    iv: str | UnsetType = UNSET
    serial: Int32

    def check(self) -> None:
        """Check the serial number; raises OptionError."""
        if self.serial == 0:
            raise OptionError("'serial' should not be equal to 0")
