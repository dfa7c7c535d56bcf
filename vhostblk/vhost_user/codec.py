# SPDX-License-Identifier: Apache-2.0
"""Framing of vhost-user messages: bytes and file descriptors in, messages out.

Descriptors belong to the message whose header arrived in the same `recvmsg` ("Communication").
On a stream that holds only when no read goes beyond a header, or beyond a payload; so the decoder
says how many bytes to ask for next (`wanted`) and refuses more. Two system calls a message are
nothing on a control channel.

Whoever holds an `FdList` has to close it or to take the descriptors out of it.
"""

from __future__ import annotations

import os
import socket
from array import array
from typing import TYPE_CHECKING

import msgspec

from vhostblk.vhost_user.errors import ProtocolError
from vhostblk.vhost_user.layout import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    VERSION,
    VERSION_MASK,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class FdList:
    """File descriptors that somebody is responsible for: the holder of this list."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def extend(self, fds: Iterable[int]) -> None:
        """Become responsible for more."""
        self._fds.extend(fds)

    def take_all(self) -> list[int]:
        """Hand the descriptors, and the duty to close them, to the caller."""
        fds, self._fds = self._fds, []
        return fds

    def take_only(self) -> int | None:
        """Hand over the descriptor of a message that has one at most; None: it has none."""
        fds = self.take_all()
        return fds[0] if fds else None

    def ancillary(self) -> list[tuple[int, int, bytes]]:
        """Return them as `sendmsg` takes them; they stay here."""
        if not self._fds:
            return []
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self._fds).tobytes())]

    def close(self) -> None:
        """Close what nobody took; may be called again."""
        for fd in self.take_all():
            os.close(fd)


class Message(msgspec.Struct):
    """One request of the front-end."""

    request: int
    flags: int
    payload: bytes
    fds: FdList

    @property
    def need_reply(self) -> bool:
        """Tell whether the sender wants to know of success or failure (REPLY_ACK)."""
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def name(self) -> str:
        """The message's name, or its number."""
        return request_name(self.request)


class Part(msgspec.Struct):
    """A part of a message: bytes, and the descriptors that come with the first of them."""

    data: bytes = b""
    fds: FdList = msgspec.field(default_factory=FdList)


def request_name(request: int) -> str:
    """Return a message's name for the log."""
    try:
        return Request(request).name
    except ValueError:
        return f"message {request}"


class MessageDecoder:
    """Cuts one front-end's byte stream into messages."""

    __slots__ = ("_buffer", "_fds", "_flags", "_header_done", "_request", "wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds = FdList()
        self._header_done = False
        self._request = 0
        self._flags = 0
        #: How many bytes, at most, `feed` takes next; always above 0.
        self.wanted = HEADER.size

    @property
    def mid_message(self) -> bool:
        """Tell whether an end of the stream here would cut a message in two."""
        return self._header_done or bool(self._buffer)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Message | None:
        """Take what one `recvmsg` of at most `wanted` bytes delivered.

        Returns the message that this completes, if it does. Raises ProtocolError; after that only
        `close` may be called. The descriptors belong to the decoder at once, in any case.
        """
        incoming = FdList(fds)
        if self._header_done:
            incoming.close()  # came with a payload, hence belongs to no message
        else:
            self._fds.extend(incoming.take_all())
        if len(data) > self.wanted:
            raise ProtocolError(f"{len(data)} bytes fed where {self.wanted} were wanted")
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted == 0 and not self._header_done:
            self._take_header()
        if self.wanted == 0:
            return self._take_message()
        return None

    def _take_header(self) -> None:
        request, flags, size = HEADER.unpack(self._buffer)
        name = request_name(request)
        if flags & VERSION_MASK != VERSION:
            raise ProtocolError(f"{name}: protocol version {flags & VERSION_MASK}, not {VERSION}")
        if flags & FLAG_REPLY:
            raise ProtocolError(f"{name}: a reply, where only requests are expected")
        if size > MAX_PAYLOAD:
            raise ProtocolError(f"{name}: payload of {size} bytes, more than {MAX_PAYLOAD}")
        if len(self._fds) > MAX_FDS:
            raise ProtocolError(f"{name}: {len(self._fds)} file descriptors, more than {MAX_FDS}")
        self._request, self._flags = request, flags
        self._buffer.clear()
        self._header_done = True
        self.wanted = size

    def _take_message(self) -> Message:
        message = Message(self._request, self._flags, bytes(self._buffer), self._fds)
        self._fds = FdList()
        self._buffer.clear()
        self._header_done = False
        self.wanted = HEADER.size
        return message

    def take_part(self) -> Part:
        """Hand over what has come of a message; after that only `close` may be called."""
        data = bytes(self._buffer)
        if self._header_done:
            data = HEADER.pack(self._request, self._flags, len(data) + self.wanted) + data
        return Part(data, FdList(self._fds.take_all()))

    def give_part(self, part: Part) -> None:
        """Take what has come of a message elsewhere, before anything else; raises ProtocolError."""
        data, fds = part.data, part.fds.take_all()
        for chunk in (data[: HEADER.size], data[HEADER.size :]):
            if chunk and (message := self.feed(chunk, fds)) is not None:
                message.fds.close()
                raise ProtocolError("a whole message, where only a part is expected")
            fds = []
        self._fds.extend(fds)

    def close(self) -> None:
        """Forget a half-received message and its descriptors."""
        self._fds.close()
        self._buffer.clear()


def encode_reply(request: int, payload: bytes) -> bytes:
    """Make the reply to `request`."""
    return HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload


def encode_request(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Make a request: the back-end's own, or a test front-end's."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload
