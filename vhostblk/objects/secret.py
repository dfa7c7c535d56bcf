# SPDX-License-Identifier: Apache-2.0
"""Secrets: passwords, passphrases and keys that other options name by the id."""

from __future__ import annotations

import base64
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from vhostblk.crypto import files
from vhostblk.crypto.errors import SecretError
from vhostblk.crypto.formats import decode_base64, decrypt
from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.objects.base import UserObject
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.base import UNSET
from vhostblk.schema.objects.secret import QCryptoSecretFormat, SecretProperties

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions
    from vhostblk.schema.objects.secret import SecretKeyringProperties

register_type(
    QomType(
        "secret_common",
        "object",
        True,
        "user-creatable",
        {"iv": "string", "keyid": "string", "format": "QCryptoSecretFormat"},
    )
)


class CommonSecret(UserObject):
    """What all secrets have in common: the formats, and that nobody sees them."""

    reads_files: ClassVar[bool] = True

    def __init__(
        self, options: SecretProperties | SecretKeyringProperties, around: Surroundings
    ) -> None:
        super().__init__(options, around)
        with self.load() as given:
            self._value = _decoded(given, options, around)

    @abstractmethod
    def load(self) -> SecretBytes:
        """Return the secret as it is given; raises SecretError."""

    @property
    def offer(self) -> object:
        """The secret."""
        return self._value

    def remove(self) -> None:
        """Wipe the secret."""
        self._value.wipe()

    def discard(self) -> None:
        """Wipe the secret."""
        self._value.wipe()

    def write(self, name: str, value: object) -> None:
        """Refuse: the secret has been read."""
        raise PropertyError("Property cannot be set after initialization")


def _decoded(
    given: SecretBytes,
    options: SecretProperties | SecretKeyringProperties,
    around: Surroundings,
) -> SecretBytes:
    encoded = options.format is QCryptoSecretFormat.BASE64
    with given.view as view:
        if not isinstance(options.keyid, str):
            return decode_base64(view) if encoded else SecretBytes(view)
        iv = options.iv.encode() if isinstance(options.iv, str) else None
        with around.keys.secret(options.keyid) as key:
            if not encoded:
                return decrypt(view, key, iv)
            with decode_base64(view) as plain, plain.view as plain_view:
                return decrypt(plain_view, key, iv)


class SecretObject(CommonSecret):
    """A secret, given literally or in a file."""

    options_type: ClassVar[type[ObjectOptions]] = SecretProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("secret", "secret_common", properties={"file": "string", "data": "string"})
    )

    options: SecretProperties

    def __init__(self, options: SecretProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        # Nothing else keeps the literal one.
        self.options = replace(options, data=UNSET)

    def load(self) -> SecretBytes:
        """Return the content of the file, or the literal secret."""
        path, data = self.options.file, self.options.data
        if isinstance(path, str):
            if isinstance(data, str):
                raise SecretError("'file' and 'data' are mutually exclusive")
            try:
                found = files.read_secret(path)
            except OSError as error:
                raise SecretError(
                    f"Unable to read {path}: {files.read_failure(path, error)}"
                ) from error
            files.warn_if_open(path, secret=True)
            return found
        if not isinstance(data, str):
            raise SecretError("Either 'file' or 'data' must be provided")
        return SecretBytes(data.encode("utf-8", "surrogateescape"))

    def definition(self) -> dict[str, Any]:
        """Return the secret itself, as the file or the key may be gone."""
        with self._value.view as view:
            return {
                "qom-type": self.qom_type.name,
                "id": self.id,
                "format": "base64",
                "data": base64.b64encode(view).decode(),
            }

    def read(self, name: str) -> object:
        """Return a property; nobody gets the secret."""
        if name == "data":
            raise PropertyError(f"Property '{self.qom_type.name}.data' is not readable")
        return super().read(name)
