# SPDX-License-Identifier: Apache-2.0
"""The front-end's side of the vhost-user protocol: numbers, payloads and one connection.

It is written apart from `vhostblk.vhost_user` on purpose: a misreading of the specification must
not cancel itself out.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Request(IntEnum):
    """Front-end message types."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class ProtocolFeature(IntEnum):
    """Protocol feature bits used here."""

    MQ = 0
    REPLY_ACK = 3
    CONFIG = 9
    INFLIGHT_SHMFD = 12


#: Virtio feature bit that stands for "protocol features can be negotiated".
F_PROTOCOL_FEATURES = 30

HEADER = struct.Struct("<III")
VERSION = 1
FLAG_REPLY = 4
FLAG_NEED_REPLY = 8
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
CONFIG_HEADER = struct.Struct("<III")
#: Size and offset of the mapping, queues, queue size, padding.
INFLIGHT = struct.Struct("<QQHH4x")
MAX_PAYLOAD = 4096


class ProtocolError(Exception):
    """The back-end broke the protocol, refused a message or went away."""


class Connection:
    """A connection to a back-end; every wait ends after `timeout` seconds."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 5.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self.reply_ack = False
        try:
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Descriptor of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply of its own; waits for the ack if that is negotiated."""
        flags = VERSION | (FLAG_NEED_REPLY if self.reply_ack else 0)
        self._transmit(request, flags, payload, fds)
        if self.reply_ack:
            (status,) = U64.unpack(self._receive(request))
            if status:
                raise ProtocolError(f"{request.name} failed with {status}")

    def call(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a message that has a reply; return the reply's payload."""
        self._transmit(request, VERSION, payload, ())
        return self._receive(request)

    def call_for_fd(self, request: Request, payload: bytes) -> tuple[bytes, int]:
        """`call` for a message whose reply brings a file descriptor, which is the caller's."""
        self._transmit(request, VERSION, payload, ())
        header, fds, _, _ = socket.recv_fds(self._socket, HEADER.size, 1)
        if len(header) != HEADER.size or len(fds) != 1:
            raise ProtocolError(f"{request.name}: {len(header)} bytes, {len(fds)} descriptors")
        _, _, size = HEADER.unpack(header)
        return self._read(min(size, MAX_PAYLOAD), request), fds[0]

    def call_u64(self, request: Request) -> int:
        """`call` for the messages whose reply is a number."""
        reply = self.call(request)
        if len(reply) != U64.size:
            raise ProtocolError(f"{request.name}: reply of {len(reply)} bytes")
        (value,) = U64.unpack(reply)
        return int(value)

    def _transmit(self, request: Request, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        )
        message = HEADER.pack(request, flags, len(payload)) + payload
        try:
            sent = self._socket.sendmsg([message], ancillary)
            self._socket.sendall(message[sent:])
        except OSError as error:
            raise ProtocolError(f"{request.name}: {error}") from error

    def _receive(self, request: Request) -> bytes:
        number, flags, size = HEADER.unpack(self._read(HEADER.size, request))
        if number != request or not flags & FLAG_REPLY or size > MAX_PAYLOAD:
            raise ProtocolError(
                f"{request.name}: unexpected reply {number}, flags {flags:#x}, {size} bytes"
            )
        return self._read(size, request)

    def _read(self, size: int, request: Request) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except OSError as error:
                raise ProtocolError(f"{request.name}: {error}") from error
            if not more:
                raise ProtocolError(f"{request.name}: the back-end hung up")
            data += more
        return data
