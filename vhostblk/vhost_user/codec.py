# SPDX-License-Identifier: Apache-2.0
"""Framing of vhost-user messages: bytes and file descriptors in, messages out.

Descriptors belong to the message whose header arrived in the same `recvmsg` ("Communication").
On a stream this is true only if no read crosses the end of a header or of a payload. So the decoder
limits the number of bytes of the next read (`wanted`). The cost, two system calls for each message,
does not matter on a control channel.

The owner of an `FdList` must close it, or take the descriptors out of it.
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
    """File descriptors that belong to the owner of this list."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def extend(self, fds: Iterable[int]) -> None:
        """Take over more descriptors."""
        self._fds.extend(fds)

    def take_all(self) -> list[int]:
        """Return the descriptors, which the caller then owns."""
        fds, self._fds = self._fds, []
        return fds

    def take_only(self) -> int | None:
        """Return the descriptor of a message that has at most one, or None; the caller owns it."""
        fds = self.take_all()
        return fds[0] if fds else None

    def ancillary(self) -> list[tuple[int, int, bytes]]:
        """Return the ancillary data for `sendmsg`; the list keeps the descriptors."""
        if not self._fds:
            return []
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", self._fds).tobytes())]

    def close(self) -> None:
        """Close the remaining descriptors; may be called again."""
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
        """Whether the sender asks for a reply with success or failure (REPLY_ACK)."""
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def name(self) -> str:
        """The message's name, or its number."""
        return request_name(self.request)


class Part(msgspec.Struct):
    """A part of a message: bytes, and the descriptors that are sent with the first byte."""

    data: bytes = b""
    fds: FdList = msgspec.field(default_factory=FdList)


def request_name(request: int) -> str:
    """Return a message's name for the log."""
    try:
        return Request(request).name
    except ValueError:
        return f"message {request}"


class MessageDecoder:
    """A decoder that splits the byte stream of one front-end into messages."""

    __slots__ = ("_buffer", "_fds", "_flags", "_header_done", "_request", "wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds = FdList()
        self._header_done = False
        self._request = 0
        self._flags = 0
        #: The maximum number of bytes for the next `feed`; always above 0.
        self.wanted = HEADER.size

    @property
    def mid_message(self) -> bool:
        """Whether a message is partly received."""
        return self._header_done or bool(self._buffer)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Message | None:
        """Process the result of one `recvmsg` of at most `wanted` bytes.

        Return the message that it completes, if any. Raises ProtocolError; after that only `close`
        may be called. The decoder owns the descriptors in any case.
        """
        incoming = FdList(fds)
        if self._header_done:
            incoming.close()  # it was sent with a payload, so it belongs to no message
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
        """Return the received part of a message; after that only `close` may be called."""
        data = bytes(self._buffer)
        if self._header_done:
            data = HEADER.pack(self._request, self._flags, len(data) + self.wanted) + data
        return Part(data, FdList(self._fds.take_all()))

    def give_part(self, part: Part) -> None:
        """Set the part of a message that another decoder has received; raises ProtocolError.

        This must be the first call.
        """
        data, fds = part.data, part.fds.take_all()
        for chunk in (data[: HEADER.size], data[HEADER.size :]):
            if chunk and (message := self.feed(chunk, fds)) is not None:
                message.fds.close()
                raise ProtocolError("a whole message, where only a part is expected")
            fds = []
        self._fds.extend(fds)

    def close(self) -> None:
        """Drop a partly received message and its descriptors."""
        self._fds.close()
        self._buffer.clear()


def encode_reply(request: int, payload: bytes) -> bytes:
    """Return the encoded reply to `request`."""
    return HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload


def encode_request(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return an encoded request: the back-end's own, or a test front-end's."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload
