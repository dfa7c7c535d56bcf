# SPDX-License-Identifier: Apache-2.0
"""Keys for TLS that both sides know."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vhostblk.net.tls.psk import PskCredentials
from vhostblk.objects.tls_creds import TlsCredsObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.tls_creds import TlsCredsPskProperties

if TYPE_CHECKING:
    from vhostblk.net.tls.credentials import Credentials, Source
    from vhostblk.schema.object import ObjectOptions


class TlsCredsPskObject(TlsCredsObject):
    """A file of names and keys."""

    options_type: ClassVar[type[ObjectOptions]] = TlsCredsPskProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "tls-creds-psk",
            "tls-creds",
            interface="user-creatable",
            properties={"username": "string"},
        )
    )

    options: TlsCredsPskProperties

    def load(self, source: Source) -> Credentials:
        """Load the keys."""
        name = self.options.username if isinstance(self.options.username, str) else None
        return PskCredentials(source, username=name, **self.common)
