# SPDX-License-Identifier: Apache-2.0
"""The messages of a hand-over: JSON with a length in front, and descriptors.

A frame begins with the length of the JSON text and the number of descriptors (both 32 bits, in
native byte order). The text follows, and then the descriptors: single bytes, each of which carries
at most `_FDS_AT_ONCE` of them. The text refers to a descriptor by its place in the frame.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from vhostblk.errors import errors_as
from vhostblk.handover.errors import HandoverError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Incremented for each incompatible change of the messages.
VERSION = 2

#: Seconds without a message after which the other side counts as dead.
PATIENCE = 60.0

#: Seconds within which a killed process has exited.
END_PATIENCE = 10.0

#: The kernel's limit is 253 (SCM_MAX_FD).
_FDS_AT_ONCE = 128
_HEADER = struct.Struct("=II")
_MAX_TEXT = 256 << 20
_MAX_FDS = 1 << 20
_READ_SIZE = 1 << 20


class _Message(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Base of all messages."""


class Hello(_Message, kw_only=True, frozen=True):
    """The taker's greeting."""

    version: int


class Listening(msgspec.Struct, kw_only=True, frozen=True):
    """A listening socket, and the socket file that must be removed with it."""

    fd: int
    path: str | None


class ChardevListening(msgspec.Struct, kw_only=True, frozen=True):
    """The sockets of a character device; they listen at `address`."""

    chardev: str
    address: str
    sockets: list[Listening]


class Configuration(_Message, kw_only=True, frozen=True):
    """Objects, nodes and exports in QMP's form, in the order in which they can be created."""

    objects: list[dict[str, Any]]
    blockdevs: list[dict[str, Any]]
    exports: list[dict[str, Any]]
    chardevs: list[ChardevListening]
    #: The socket where the giver waits for takers.
    handover: Listening


class Prepared(_Message, kw_only=True, frozen=True):
    """The taker now needs only the giver's state."""


class ExportState(msgspec.Struct, kw_only=True, frozen=True):
    """The state of one export; its type defines the form."""

    id: str
    state: msgspec.Raw


class Guard(msgspec.Struct, kw_only=True, frozen=True):
    """An open file that keeps an image locked, and the bytes that it has locked."""

    fd: int
    locked: list[int]


class State(_Message, kw_only=True, frozen=True):
    """The state that only one process can own."""

    exports: list[ExportState]
    guards: list[Guard]
    #: One end of a pipe; see `leash`.
    leash: int
    #: When front-ends began to wait, in seconds of CLOCK_MONOTONIC.
    since: float


class Ready(_Message, kw_only=True, frozen=True):
    """The taker is ready to serve."""


class Commit(_Message, kw_only=True, frozen=True):
    """The taker must serve."""


class Failure(_Message, kw_only=True, frozen=True):
    """The hand-over has failed."""

    reason: str


Message = Hello | Configuration | Prepared | State | Ready | Commit | Failure
M = TypeVar("M", bound=_Message)

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Fds:
    """Descriptors of a frame: collected for sending, or received and taken one by one."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self.all: list[int] = list(fds)
        self._taken: set[int] = set()

    def add(self, fd: int) -> int:
        """Add a descriptor, which the caller keeps; return its place."""
        self.all.append(fd)
        return len(self.all) - 1

    def take(self, place: int) -> int:
        """Return the descriptor at a place, which the caller then owns; raises HandoverError."""
        if not 0 <= place < len(self.all) or place in self._taken:
            raise HandoverError(f"descriptor {place} is missing")
        self._taken.add(place)
        return self.all[place]

    def close(self) -> None:
        """Close the received descriptors that were not taken."""
        for place, fd in enumerate(self.all):
            if place not in self._taken:
                self._taken.add(place)
                os.close(fd)


class Channel:
    """One end of the conversation. It waits in threads, which don't block the event loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self._socket = sock

    async def send(self, message: Message, fds: Fds | None = None) -> None:
        """Send a message; raises HandoverError."""
        await asyncio.to_thread(self._send, message, [] if fds is None else fds.all)

    async def receive(self, kind: type[M]) -> tuple[M, Fds]:
        """Return the next message, which must be of this kind; raises HandoverError."""
        message, fds = await asyncio.to_thread(self._receive)
        if not isinstance(message, kind):
            fds.close()
            if isinstance(message, Failure):
                raise RefusedError(message.reason)
            raise HandoverError(f"{type(message).__name__} where {kind.__name__} is expected")
        return message, fds

    async def wait_for_end(self) -> None:
        """Shut down the sending side, and wait until the other process has exited."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with suppress(HandoverError):
            self._socket.settimeout(END_PATIENCE)
            await asyncio.to_thread(self._drain)

    def _drain(self) -> None:
        while True:
            for fd in self._receive_some(_READ_SIZE)[1]:
                os.close(fd)

    def close(self) -> None:
        """Close the connection; this wakes up the other side, and our threads that wait."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, message: Message, fds: Sequence[int]) -> None:
        text = msgspec.json.encode(message)
        with errors_as(HandoverError, "the other process"):
            self._socket.sendall(_HEADER.pack(len(text), len(fds)) + text)
            for start in range(0, len(fds), _FDS_AT_ONCE):
                part = array("i", fds[start : start + _FDS_AT_ONCE])
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, part)
                self._socket.sendmsg([b"\0"], [rights])

    def _receive(self) -> tuple[Message, Fds]:
        length, count = _HEADER.unpack(self._read(_HEADER.size))
        if length > _MAX_TEXT or count > _MAX_FDS:
            raise HandoverError(f"a message of {length} bytes and {count} descriptors")
        text = self._read(length)
        fds = Fds()
        try:
            while len(fds.all) < count:
                self._read_fds(fds)
            return _decoder.decode(text), fds
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            fds.close()
            raise HandoverError(f"a message that can't be understood: {error}") from error
        except BaseException:
            fds.close()
            raise

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part, _ = self._receive_some(min(length - len(data), _READ_SIZE))
            data += part
        return bytes(data)

    def _read_fds(self, fds: Fds) -> None:
        _, received = self._receive_some(1)
        if not received:
            raise HandoverError("descriptors are missing")
        fds.all += received

    def _receive_some(self, size: int) -> tuple[bytes, list[int]]:
        """Read the available data, with its descriptors; raises HandoverError."""
        space = socket.CMSG_SPACE(_FDS_AT_ONCE * 4)
        with errors_as(HandoverError, "the other process"):
            data, ancillary, flags, _ = self._socket.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += memoryview(content[: len(content) // 4 * 4]).cast("i")
        if not data or flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise HandoverError(
                "too many open files" if data else "the other process has closed the connection"
            )
        return data, fds
