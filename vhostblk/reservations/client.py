# SPDX-License-Identifier: Apache-2.0
"""The client of a persistent reservation helper, QEMU's or ours.

It connects when it is made, and again while a command is sent: the helper may be started anew at
any time. Once the CDB is sent, a broken connection fails the command, because the helper may have
carried it out. That is how QEMU's client works, too.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError, reason
from vhostblk.reservations.errors import CutShortError, ProtocolError
from vhostblk.reservations.layout import FEATURES_SIZE, REPLY
from vhostblk.reservations.manager import Manager
from vhostblk.reservations.sense import LUN_COMMUNICATION_FAILURE, check_condition
from vhostblk.reservations.wire import REQUESTED, decode_reply, encode_cdb

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.reservations.wire import Reply

#: `sun_path` of `struct sockaddr_un` is 108 bytes, the last of them a zero.
_MAX_PATH = 107
#: How often connecting is tried for a command, and seconds between two attempts.
ATTEMPTS = 5
PAUSE = 1.0
#: Seconds for connecting: a helper answers at once.
CONNECT_TIMEOUT = 5
#: Seconds for a command. Helpers give devices 30.
REPLY_TIMEOUT = 120.0
#: `struct timeval`.
_TIME = struct.Struct("ll")
_FAILED = check_condition(LUN_COMMUNICATION_FAILURE)


class ConnectError(VhostblkError):
    """Nobody answers at the helper's socket."""


class HelperClient(Manager):
    """A connection to the helper at `path`; commands take turns."""

    def __init__(self, path: str, changed: Callable[[], object] = lambda: None) -> None:
        """`changed` is called when the connection is gone, or is there again."""
        super().__init__()
        #: Where the helper listens; may be changed, for the next time that it connects.
        self.path = path
        self._changed = changed
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known: a broken one is found by a command."""
        return self._socket is not None

    def connect(self) -> None:
        """Connect for the first time, and wait for that; raises ConnectError."""
        path = os.fsencode(self.path)
        if b"\0" in path:
            raise ConnectError(f"UNIX socket path {self.path!r} contains a null byte")
        if len(path) > _MAX_PATH:
            raise ConnectError(
                f"UNIX socket path '{self.path}' is too long: must be less than "
                f"{_MAX_PATH + 1} bytes"
            )
        made = socket.socket(socket.AF_UNIX)
        try:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                made.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(CONNECT_TIMEOUT, 0))
            # An empty address would be an autobound one, which nobody listens at either.
            made.connect(path or b"\0")
            if len(made.recv(FEATURES_SIZE, socket.MSG_WAITALL)) < FEATURES_SIZE:
                raise ConnectError(
                    f"Failed to connect to '{self.path}': the helper has closed the connection"
                )
            made.sendall(REQUESTED, socket.MSG_NOSIGNAL)
            made.setblocking(False)
        except BlockingIOError:
            made.close()
            raise ConnectError(
                f"Failed to connect to '{self.path}': the helper doesn't answer"
            ) from None
        except (OSError, ValueError) as error:
            made.close()
            raise ConnectError(f"Failed to connect to '{self.path}': {reason(error)}") from error
        except BaseException:
            made.close()
            raise
        self._socket = made

    def close(self) -> None:
        """Disconnect, without telling; a command in flight fails."""
        if self._socket is not None and self._turn.locked():
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Have the helper carry a command out."""
        async with self._turn:
            try:
                if not await self._send_cdb(fd, cdb):
                    return _FAILED
                async with asyncio.timeout(REPLY_TIMEOUT):
                    return await self._finish(cdb, parameters)
            except (OSError, ProtocolError):  # TimeoutError is an OSError
                self._disconnect()
                return _FAILED
            except BaseException:
                # The reply would be taken for that of the next command.
                self._disconnect()
                raise

    async def _send_cdb(self, fd: int, cdb: bytes) -> bool:
        """Send a CDB with the descriptor, and connect for that where need be."""
        message = encode_cdb(cdb)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        for attempt in range(ATTEMPTS):
            try:
                if self._socket is None:
                    if attempt:
                        await asyncio.sleep(PAUSE)
                    await self._reconnect()
                await self._send(message, rights)
            except (OSError, ProtocolError):
                if self._socket is not None:
                    self._disconnect()
            else:
                return True
        return False

    async def _reconnect(self) -> None:
        made = socket.socket(socket.AF_UNIX)
        made.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.sock_connect(made, self.path)
                await _receive(made, FEATURES_SIZE)
                await loop.sock_sendall(made, REQUESTED)
        except BaseException:
            made.close()
            raise
        self._socket = made
        self._changed()

    async def _send(self, data: bytes, rights: list[tuple[int, int, array.array[int]]]) -> None:
        """Send bytes, the first of them with ancillary data."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent = self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                break
            except BlockingIOError:
                await _until_writable(self._socket)
        if rest := data[sent:]:
            await loop.sock_sendall(self._socket, rest)

    async def _finish(self, cdb: bytes, parameters: bytes) -> Reply:
        assert self._socket is not None
        if parameters:
            await asyncio.get_running_loop().sock_sendall(self._socket, parameters)
        reply, size = decode_reply(await _receive(self._socket, REPLY.size), cdb)
        return reply._replace(data=await _receive(self._socket, size)) if size else reply

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._drop()
            self._changed()


async def _receive(sock: socket.socket, count: int) -> bytes:
    """Receive exactly so many bytes; raises CutShortError, OSError."""
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not piece:
            raise CutShortError("Connection closed in the middle of a message")
        data += piece
    return data


async def _until_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock.fileno(), tell)
    try:
        async with asyncio.timeout(REPLY_TIMEOUT):
            await ready
    finally:
        loop.remove_writer(sock.fileno())
