# SPDX-License-Identifier: Apache-2.0
"""From a new connection to one that is ready: TLS, authorization, WebSocket, in bounded time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError, reason
from vhostblk.net.authorization import is_allowed
from vhostblk.net.codec import Stack
from vhostblk.net.errors import AuthorizationError, HandshakeError
from vhostblk.threads import in_thread

if TYPE_CHECKING:
    import socket

    from vhostblk.crypto.keys import Keys
    from vhostblk.net.codec import Codec
    from vhostblk.net.tls.credentials import Credentials
    from vhostblk.net.tls.session import TlsSession

#: Seconds for all of it. An honest peer needs a few round trips.
TIMEOUT = 30.0

_READ_SIZE = 16 << 10


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a connection goes through before it is used."""

    #: None: no TLS.
    credentials: Credentials | None = None
    #: The object to ask whether the peer is allowed.
    authz_id: str | None = None
    #: Of the server, where this side is the client.
    hostname: str | None = None
    websocket: bool = False

    @property
    def nothing(self) -> bool:
        """Whether a connection can be used as it is."""
        return self.credentials is None and not self.websocket


async def negotiate(connection: socket.socket, keys: Keys, wanted: Requirements) -> Stack:
    """Return the codecs of a connection that is ready.

    Raises VhostblkError or OSError; the caller closes the connection, which may have been told why.
    """
    stack = Stack()
    try:
        async with asyncio.timeout(TIMEOUT):
            await _negotiate(connection, keys, wanted, stack)
    except TimeoutError:
        stack.close()
        raise HandshakeError(f"the handshake took more than {TIMEOUT:.0f} seconds") from None
    except BaseException:
        stack.close()
        raise
    return stack


async def _negotiate(
    connection: socket.socket, keys: Keys, wanted: Requirements, stack: Stack
) -> None:
    if (credentials := wanted.credentials) is not None:
        from vhostblk.net.tls.session import TlsSession

        if credentials.refreshes:
            await in_thread(credentials.refresh)
        session = TlsSession(credentials, hostname=wanted.hostname)
        await _establish(connection, stack, session)
        if wanted.authz_id is not None and session.peer_name is not None:
            await _authorize(connection, stack, keys, wanted.authz_id, session)
    if wanted.websocket:
        from vhostblk.net.websocket import WebSocket

        await _establish(connection, stack, WebSocket())


async def _establish(connection: socket.socket, stack: Stack, layer: Codec) -> None:
    """Run a codec's handshake on top of those that are there, and add it to them."""
    stack.layers.append(layer)
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while True:
            try:
                stack.feed(data)
            finally:
                # Also what is said about a failure.
                if outgoing := stack.encode(b""):
                    await loop.sock_sendall(connection, outgoing)
            if layer.established:
                return
            if stack.ended:
                raise HandshakeError("the peer ended the connection during the handshake")
            data = await loop.sock_recv(connection, _READ_SIZE)
            if not data:
                raise HandshakeError("the peer closed the connection during the handshake")
    except OSError as error:
        raise HandshakeError(
            f"the connection broke during the handshake: {reason(error)}"
        ) from error


async def _authorize(
    connection: socket.socket, stack: Stack, keys: Keys, authz_id: str, session: TlsSession
) -> None:
    assert session.peer_name is not None
    try:
        if not await is_allowed(keys, authz_id, session.peer_name):
            raise AuthorizationError(f"TLS x509 authz check for {session.peer_name} is denied")
    except VhostblkError:
        from vhostblk.crypto import gnutls

        session.refuse(gnutls.ALERT_ACCESS_DENIED)
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(connection, stack.encode(b""))
        raise
