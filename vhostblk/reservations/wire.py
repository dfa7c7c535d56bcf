# SPDX-License-Identifier: Apache-2.0
"""The protocol without I/O: bytes and descriptors in, requests out, replies to bytes.

A connection starts with a word of features each way. Then the client sends a request: a CDB of 16
bytes, a descriptor with any of them, and for PERSISTENT RESERVE OUT the parameter list. It gets a
reply, and may send the next request.

A descriptor belongs to the bytes that it came with, so nobody reads further than `Request.wanted`
says: the next request may have been sent already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vhostblk.reservations.errors import CommandError, CutShortError, DescriptorError, FeatureError
from vhostblk.reservations.layout import (
    CDB_SIZE,
    FEATURES,
    FEATURES_SIZE,
    GOOD,
    LENGTH_OFFSET,
    MAX_DATA,
    PERSISTENT_RESERVE_IN,
    PERSISTENT_RESERVE_OUT,
    REPLY,
    SENSE_SIZE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What the helper sends first.
GREETING = FEATURES.to_bytes(FEATURES_SIZE, "big")
#: What the client answers: it asks for no feature.
REQUESTED = bytes(FEATURES_SIZE)


class Request(NamedTuple):
    """One command; the descriptor is the receiver's to close."""

    cdb: bytes
    fd: int
    #: The parameter list of PERSISTENT RESERVE OUT.
    parameters: bytes

    @property
    def length(self) -> int:
        """How much data the CDB says."""
        return data_length(self.cdb)


class Reply(NamedTuple):
    """What became of a command."""

    status: int
    sense: bytes = b""
    #: Only of PERSISTENT RESERVE IN, and only with status GOOD.
    data: bytes = b""

    def encode(self, length: int) -> bytes:
        """Return the bytes for a client that wants `length` bytes of data at most."""
        data = self.data[:length] if self.status == GOOD else b""
        return REPLY.pack(self.status, len(data), self.sense[:SENSE_SIZE]) + data


def encode_cdb(cdb: bytes) -> bytes:
    """Return the bytes of a request before its parameter list."""
    return cdb.ljust(CDB_SIZE, b"\0")


def decode_reply(head: bytes, cdb: bytes) -> tuple[Reply, int]:
    """Return the reply to a command, and how much data follows; raises ProtocolError."""
    status, size, sense = REPLY.unpack(head)
    most = data_length(cdb) if cdb[0] == PERSISTENT_RESERVE_IN and status == GOOD else 0
    if size > most:
        raise CommandError(f"Invalid reply: {size} bytes of data, where {most} were asked for")
    return Reply(status, sense), size


def data_length(cdb: bytes) -> int:
    """Return the parameter list length, or the allocation length, of a CDB."""
    return cdb[LENGTH_OFFSET] << 8 | cdb[LENGTH_OFFSET + 1]


class ServerSide:
    """The helper's half of a connection.

    Read `wanted` bytes at most (with descriptors where `takes_descriptor`), and call `receive`.
    It returns the request once that is complete.
    """

    def __init__(self) -> None:
        self._greeted = False
        self._buffer = bytearray()
        self._fd = -1
        #: The CDB, once it is complete and its parameter list isn't.
        self._cdb = b""

    @property
    def wanted(self) -> int:
        """How many bytes the message at hand still lacks."""
        if not self._greeted:
            return FEATURES_SIZE - len(self._buffer)
        expected = data_length(self._cdb) if self._cdb else CDB_SIZE
        return expected - len(self._buffer)

    @property
    def takes_descriptor(self) -> bool:
        """Whether a descriptor may come with the next bytes."""
        return self._greeted and not self._cdb

    @property
    def is_idle(self) -> bool:
        """Whether the client owes nothing: no message has begun."""
        return self._greeted and not self._cdb and not self._buffer and self._fd < 0

    def receive(
        self, data: bytes, fds: Sequence[int] = (), *, truncated: bool = False
    ) -> Request | None:
        """Take bytes, and descriptors that came with them; raises ProtocolError.

        No bytes are the end of the connection. `truncated`: the kernel dropped descriptors. One
        descriptor is kept: the first, unless the request has one (`holds_descriptor`). The others
        are the caller's to close.
        """
        if self._fd < 0 and fds:
            self._fd, fds = fds[0], fds[1:]
        if fds:
            raise DescriptorError("More than one file descriptor in request")
        if truncated:
            raise DescriptorError("Too many file descriptors in request, or open here")
        if not data:
            if self.is_idle:
                return None
            raise CutShortError("Connection closed in the middle of a message")
        self._buffer += data
        if self.wanted:
            return None
        if not self._greeted:
            self._take_features()
            return None
        if not self._cdb:
            return self._take_cdb(bytes(self._buffer))
        return self._complete(bytes(self._buffer))

    def receive_whole(self, cdb: bytes, fd: int) -> Request | None:
        """Take a whole CDB that came with its descriptor, as nearly all do, when idle.

        Raises ProtocolError; the descriptor is kept then.
        """
        self._fd = fd
        return self._take_cdb(cdb)

    @property
    def holds_descriptor(self) -> bool:
        """Whether the incomplete request has its descriptor."""
        return self._fd >= 0

    def take_descriptor(self) -> int:
        """Give up the descriptor of an incomplete request; -1: there is none."""
        fd, self._fd = self._fd, -1
        return fd

    def _take_features(self) -> None:
        features = int.from_bytes(self._buffer, "big")
        if features & ~FEATURES:
            raise FeatureError(f"Unknown features requested: {features:#x}")
        self._greeted = True
        self._buffer.clear()

    def _take_cdb(self, cdb: bytes) -> Request | None:
        if self._fd < 0:
            raise DescriptorError("No file descriptor in request")
        if cdb[0] not in (PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT):
            raise CommandError(f"Invalid CDB: operation code {cdb[0]:#04x}")
        length = data_length(cdb)
        if length > MAX_DATA:
            raise CommandError(f"Invalid CDB: {length} bytes of data")
        self._cdb = cdb
        self._buffer.clear()
        if cdb[0] == PERSISTENT_RESERVE_OUT and length:
            return None
        return self._complete(b"")

    def _complete(self, parameters: bytes) -> Request:
        request = Request(self._cdb, self._fd, parameters)
        self._cdb, self._fd = b"", -1
        self._buffer.clear()
        return request
