# SPDX-License-Identifier: Apache-2.0
"""What all TLS credentials have in common.

Who uses credentials keeps them: connections, and devices for their next ones. Making the object
anew under its id renews them: what looks the id up from then on gets the new ones.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.net.tls.credentials import Source
from vhostblk.objects.base import UserObject
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.tls_creds import QCryptoTLSCredsEndpoint, TlsCredsProperties

if TYPE_CHECKING:
    from vhostblk.net.tls.credentials import Credentials
    from vhostblk.objects.base import Surroundings

TLS_CREDS = register_type(
    QomType(
        "tls-creds",
        "object",
        abstract=True,
        properties={
            "endpoint": "QCryptoTLSCredsEndpoint",
            "dir": "string",
            "verify-peer": "bool",
            "priority": "string",
        },
    )
)


class TlsCredsObject(UserObject):
    """Credentials, loaded when the object is made."""

    reads_files: ClassVar[bool] = True

    options: TlsCredsProperties

    def __init__(self, options: TlsCredsProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        directory = options.dir if isinstance(options.dir, str) else None
        server = options.endpoint is QCryptoTLSCredsEndpoint.SERVER
        self._credentials: Credentials | None = self.load(Source(directory, server))

    @abstractmethod
    def load(self, source: Source) -> Credentials:
        """Load the files; raises VhostblkError."""

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that all kinds of credentials take."""
        priority = self.options.priority if isinstance(self.options.priority, str) else None
        return {"priority": priority, "verify_peer": self.options.verify_peer}

    @property
    def offer(self) -> object:
        """The credentials."""
        return self._credentials

    @property
    def files(self) -> list[str]:
        """The directory: handshakes look at some files again, and the object may be made anew."""
        return [self.options.dir] if isinstance(self.options.dir, str) else []

    def remove(self) -> None:
        """Give the credentials up; they are freed once nobody else has them."""
        self._credentials = None

    def discard(self) -> None:
        """Give the credentials up."""
        self._credentials = None

    def write(self, name: str, value: object) -> None:
        """Refuse: the files have been read."""
        raise PropertyError("Property cannot be set after initialization")
