# SPDX-License-Identifier: Apache-2.0
"""Two sessions of ours, joined in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.crypto import gnutls
from vhostblk.net.tls.credentials import AnonymousCredentials, Source
from vhostblk.net.tls.psk import PskCredentials
from vhostblk.net.tls.session import TlsSession
from vhostblk.net.tls.x509 import X509Credentials

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.net.tls.credentials import Credentials


def x509(
    directory: Path, *, server: bool, verify: bool = True, priority: str | None = None
) -> X509Credentials:
    return X509Credentials(
        Source(str(directory), server),
        priority=priority,
        verify_peer=verify,
        sanity_check=False,
        password=lambda: None,
    )


def psk(directory: Path, *, server: bool, username: str | None = None) -> PskCredentials:
    source = Source(str(directory), server)
    return PskCredentials(source, priority=None, verify_peer=True, username=username)


def anonymous(*, server: bool) -> AnonymousCredentials:
    return AnonymousCredentials(Source(None, server), priority=None, verify_peer=True)


def update_keys(session: TlsSession) -> None:
    """Have both sides change their keys (TLS 1.3), as the library does after so many records."""
    lib = gnutls.library().lib
    assert lib.gnutls_session_key_update(session._session, gnutls.KEY_UPDATE_PEER) == 0


class Pair:
    """A client and a server."""

    def __init__(
        self, client: Credentials, server: Credentials, hostname: str | None = "localhost"
    ) -> None:
        self.client = TlsSession(client, hostname=hostname)
        self.server = TlsSession(server)

    def shake_hands(self, chunk: int = 1 << 20) -> None:
        """Do the handshake, `chunk` bytes at a time; raises TlsError."""
        self.client.feed(b"")
        for _ in range(100):
            moved = self.move(chunk)
            if self.client.established and self.server.established:
                return
            assert moved, "nobody has anything to say"
        raise AssertionError("no end")

    def move(self, chunk: int = 1 << 20) -> int:
        """Carry what each has to say to the other; return the number of bytes."""
        count = 0
        for source, target in ((self.client, self.server), (self.server, self.client)):
            data = source.encode(b"")
            count += len(data)
            for start in range(0, len(data), chunk):
                assert target.feed(data[start : start + chunk]) == b""
        return count

    def close(self) -> None:
        self.client.close()
        self.server.close()
