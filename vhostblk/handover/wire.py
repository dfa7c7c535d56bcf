# SPDX-License-Identifier: Apache-2.0
"""What the two processes of a hand-over say: JSON with a length in front, and descriptors.

A frame is the length of the JSON text and the number of descriptors (both 32 bits, in the
machine's order), the text, and then a byte with at most `_FDS_AT_ONCE` descriptors as often as it
takes. In the text a descriptor is its place among those of the frame.
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

#: Changes with every change of the messages that an older process would misunderstand.
VERSION = 2

#: Seconds without a word after which the other side counts as gone.
PATIENCE = 60.0

#: Seconds within which a process that was given up is gone.
END_PATIENCE = 10.0

#: The kernel takes 253 (SCM_MAX_FD).
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
    """A listening socket, and the file that has to go with it."""

    fd: int
    path: str | None


class ChardevListening(msgspec.Struct, kw_only=True, frozen=True):
    """The sockets of a character device; `address` says where they listen."""

    chardev: str
    address: str
    sockets: list[Listening]


class Configuration(_Message, kw_only=True, frozen=True):
    """What there is, as QMP would define it, in the order in which it can be made."""

    objects: list[dict[str, Any]]
    blockdevs: list[dict[str, Any]]
    exports: list[dict[str, Any]]
    chardevs: list[ChardevListening]
    #: Where the giver waits for takers.
    handover: Listening


class Prepared(_Message, kw_only=True, frozen=True):
    """Nothing is missing but what the giver has."""


class ExportState(msgspec.Struct, kw_only=True, frozen=True):
    """What one export takes along; its type knows the form."""

    id: str
    state: msgspec.Raw


class Guard(msgspec.Struct, kw_only=True, frozen=True):
    """An open file that keeps an image locked, and the bytes that it has locked."""

    fd: int
    locked: list[int]


class State(_Message, kw_only=True, frozen=True):
    """What only one process can have."""

    exports: list[ExportState]
    guards: list[Guard]
    #: One end of a pipe; see `leash`.
    leash: int
    #: When front-ends began to wait, in seconds of CLOCK_MONOTONIC.
    since: float


class Ready(_Message, kw_only=True, frozen=True):
    """The taker could serve now."""


class Commit(_Message, kw_only=True, frozen=True):
    """The taker is to serve."""


class Failure(_Message, kw_only=True, frozen=True):
    """The hand-over is off."""

    reason: str


Message = Hello | Configuration | Prepared | State | Ready | Commit | Failure
M = TypeVar("M", bound=_Message)

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Fds:
    """Descriptors of a frame: gathered for sending, or received and taken one by one."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self.all: list[int] = list(fds)
        self._taken: set[int] = set()

    def add(self, fd: int) -> int:
        """Send a descriptor along, which stays the caller's; return its place."""
        self.all.append(fd)
        return len(self.all) - 1

    def take(self, place: int) -> int:
        """Return the descriptor at a place, the caller's from now on; raises HandoverError."""
        if not 0 <= place < len(self.all) or place in self._taken:
            raise HandoverError(f"descriptor {place} is missing")
        self._taken.add(place)
        return self.all[place]

    def close(self) -> None:
        """Close those received that nobody took."""
        for place, fd in enumerate(self.all):
            if place not in self._taken:
                self._taken.add(place)
                os.close(fd)


class Channel:
    """One end of the conversation. It waits in threads: nothing else depends on them."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self._socket = sock

    async def send(self, message: Message, fds: Fds | None = None) -> None:
        """Send a message; raises HandoverError."""
        await asyncio.to_thread(self._send, message, [] if fds is None else fds.all)

    async def receive(self, kind: type[M]) -> tuple[M, Fds]:
        """Return the next message, which has to be of that kind; raises HandoverError."""
        message, fds = await asyncio.to_thread(self._receive)
        if not isinstance(message, kind):
            fds.close()
            if isinstance(message, Failure):
                raise RefusedError(message.reason)
            raise HandoverError(f"{type(message).__name__} where {kind.__name__} is expected")
        return message, fds

    async def wait_for_end(self) -> None:
        """Say no more, and wait until the other process is gone."""
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
        """Hang up: the other side gets to know, and a thread of ours that waits for it."""
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
        """Read what has come, with its descriptors; raises HandoverError."""
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
            raise HandoverError("too many open files" if data else "the other process is gone")
        return data, fds
