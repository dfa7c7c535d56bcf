# SPDX-License-Identifier: Apache-2.0
"""TLS without proof of who is who."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.net.tls.credentials import AnonymousCredentials
from vhostblk.objects.tls_creds import TlsCredsObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.tls_creds import TlsCredsAnonProperties

if TYPE_CHECKING:
    from vhostblk.net.tls.credentials import Credentials, Source
    from vhostblk.schema.object import ObjectOptions


class TlsCredsAnonObject(TlsCredsObject):
    """Encryption alone."""

    options_type: ClassVar[type[ObjectOptions]] = TlsCredsAnonProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("tls-creds-anon", "tls-creds", interface="user-creatable")
    )

    def load(self, source: Source) -> Credentials:
        """Make the credentials."""
        return AnonymousCredentials(source, **self.common)
