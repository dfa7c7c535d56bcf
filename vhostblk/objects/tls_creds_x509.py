# SPDX-License-Identifier: Apache-2.0
"""Certificates for TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.net.tls.x509 import X509Credentials
from vhostblk.objects.tls_creds import TlsCredsObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.tls_creds import TlsCredsX509Properties

if TYPE_CHECKING:
    from vhostblk.crypto.secret_bytes import SecretBytes
    from vhostblk.net.tls.credentials import Credentials, Source
    from vhostblk.schema.object import ObjectOptions


class TlsCredsX509Object(TlsCredsObject):
    """An authority, a certificate and its key."""

    options_type: ClassVar[type[ObjectOptions]] = TlsCredsX509Properties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "tls-creds-x509",
            "tls-creds",
            interface="user-creatable",
            properties={"sanity-check": "bool", "passwordid": "string"},
        )
    )

    options: TlsCredsX509Properties

    def load(self, source: Source) -> Credentials:
        """Load the certificates."""
        return X509Credentials(
            source,
            sanity_check=self.options.sanity_check,
            password=self._password,
            **self.common,
        )

    def _password(self) -> SecretBytes | None:
        secret = self.options.passwordid
        return self.around.keys.text_secret(secret) if isinstance(secret, str) else None
