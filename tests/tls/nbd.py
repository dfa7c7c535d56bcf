# SPDX-License-Identifier: Apache-2.0
"""A small NBD server that demands TLS (`doc/proto.md` of the NBD project).

It serves one disk in memory. Of the options it knows STARTTLS, GO and ABORT, of the requests READ,
WRITE and DISC. It tells what became of each connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError
from vhostblk.net.codec import Stack
from vhostblk.net.handshake import negotiate
from vhostblk.net.tls.session import TlsSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhostblk.crypto.keys import Keys
    from vhostblk.net.handshake import Requirements

_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
_OPTION, _REPLY = struct.Struct(">8sII"), struct.Struct(">QIII")
_REQUEST, _SIMPLE = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
_REPLY_MAGIC, _REQUEST_MAGIC, _SIMPLE_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698

_ABORT, _STARTTLS, _GO = 2, 5, 7
_ACK, _INFO, _UNSUPPORTED, _INVALID, _TLS_REQUIRED = 1, 3, 1 << 31 | 1, 1 << 31 | 3, 1 << 31 | 5
_READ, _WRITE, _DISCONNECT = 0, 1, 2

_MAX_REQUEST = 32 << 20


class ProtocolError(VhostblkError):
    """The client breaks the rules of NBD."""


@dataclass
class Visit:
    """What became of one connection."""

    secure: bool = False
    #: The name that the client has proved to have.
    peer: str | None = None
    requests: int = 0
    #: Why the server has closed the connection; "": the client has said good-bye.
    error: str = ""


class Wire:
    """A connection's bytes; those inside of TLS, once it is there."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.stack = Stack()
        self._received = bytearray()

    async def receive(self, size: int) -> bytes:
        """Return so many bytes; raises OSError or VhostblkError."""
        loop = asyncio.get_running_loop()
        while len(self._received) < size:
            data = await loop.sock_recv(self.connection, 1 << 16)
            if not data:
                raise ConnectionError("the client has closed the connection")
            self._received += self.stack.feed(data)
            if self.stack.ended:
                raise ConnectionError("the client has ended TLS")
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def send(self, data: bytes) -> None:
        """Send bytes; raises OSError or VhostblkError."""
        await asyncio.get_running_loop().sock_sendall(self.connection, self.stack.encode(data))

    async def start_tls(self, keys: Keys, wanted: Requirements) -> str | None:
        """Begin TLS; return the client's name. Raises OSError or VhostblkError."""
        if self._received:
            raise ProtocolError("plain text behind STARTTLS")
        self.stack = await negotiate(self.connection, keys, wanted)
        # The client's next words may have come with the end of the handshake.
        self._received += self.stack.feed(b"")
        (session,) = self.stack.layers
        assert isinstance(session, TlsSession)
        return session.peer_name

    def close(self) -> None:
        """Hang up."""
        self.stack.close()
        self.connection.close()


class NbdServer:
    """A server on a port of 127.0.0.1."""

    def __init__(self, disk: bytearray, keys: Keys, wanted: Requirements) -> None:
        self.disk = disk
        self._keys = keys
        self._wanted = wanted
        #: Connections that have ended, in this order.
        self.visits: asyncio.Queue[Visit] = asyncio.Queue()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    async def run(self) -> None:
        """Serve until cancelled."""
        with self._socket:
            async with asyncio.TaskGroup() as group:
                while True:
                    connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
                    group.create_task(self._serve(Wire(connection)))

    async def _serve(self, wire: Wire) -> None:
        visit = Visit()
        try:
            await wire.send(_GREETING)
            await wire.receive(4)
            while not await self._option(wire, visit):
                pass
            while await self._request(wire, visit):
                pass
        except (OSError, VhostblkError) as error:
            visit.error = str(error)
        finally:
            wire.close()
        self.visits.put_nowait(visit)

    async def _option(self, wire: Wire, visit: Visit) -> bool:
        """Answer an option; return whether requests come next."""
        magic, option, size = _OPTION.unpack(await wire.receive(_OPTION.size))
        if magic != b"IHAVEOPT" or size > 1 << 16:
            raise ProtocolError("no option")
        await wire.receive(size)

        async def reply(kind: int, data: bytes = b"") -> None:
            await wire.send(_REPLY.pack(_REPLY_MAGIC, option, kind, len(data)) + data)

        if option == _ABORT:
            # Without an answer: QEMU has hung up by then.
            raise ProtocolError("the client gives up")
        if option == _STARTTLS:
            await reply(_INVALID if visit.secure else _ACK)
            if not visit.secure:
                visit.peer = await wire.start_tls(self._keys, self._wanted)
                visit.secure = True
        elif not visit.secure:
            await reply(_TLS_REQUIRED)
        elif option == _GO:
            # The information: its kind, the size, the flags (there are flags).
            await reply(_INFO, struct.pack(">HQH", 0, len(self.disk), 1))
            await reply(_ACK)
            return True
        else:
            await reply(_UNSUPPORTED)
        return False

    async def _request(self, wire: Wire, visit: Visit) -> bool:
        """Answer a request; return whether another one comes."""
        magic, _, kind, cookie, start, size = _REQUEST.unpack(await wire.receive(_REQUEST.size))
        if kind == _DISCONNECT:
            return False
        end = start + size
        if magic != _REQUEST_MAGIC or size > _MAX_REQUEST or end > len(self.disk):
            raise ProtocolError("no request")
        data = b""
        if kind == _WRITE:
            self.disk[start:end] = await wire.receive(size)
        elif kind == _READ:
            data = bytes(self.disk[start:end])
        else:
            raise ProtocolError(f"a request of kind {kind}")
        visit.requests += 1
        await wire.send(_SIMPLE.pack(_SIMPLE_MAGIC, 0, cookie) + data)
        return True


@asynccontextmanager
async def serving(disk: bytearray, keys: Keys, wanted: Requirements) -> AsyncIterator[NbdServer]:
    """Serve a disk."""
    server = NbdServer(disk, keys, wanted)
    task = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
