# SPDX-License-Identifier: Apache-2.0
"""A client of a persistent reservation helper, and the wrong things that one can do."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE = 30.0


class Answer(NamedTuple):
    """A reply as it is on the wire."""

    status: int
    sense: bytes
    data: bytes


def reserve_in(action: int = 0, length: int = 8192, **fields: int) -> bytes:
    """Return the CDB of PERSISTENT RESERVE IN."""
    return cdb(0x5E, action, 0, length, **fields)


def reserve_out(action: int = 0, kind: int = 0, length: int = 24, **fields: int) -> bytes:
    """Return the CDB of PERSISTENT RESERVE OUT."""
    return cdb(0x5F, action, kind, length, **fields)


def cdb(operation: int, action: int, kind: int, length: int, control: int = 0) -> bytes:
    """Return a CDB of ten bytes in the sixteen that the protocol has for it."""
    return struct.pack(">BBBxxxxHB6x", operation, action, kind, length, control)


def parameters(key: int = 0, service_key: int = 0, flags: int = 0) -> bytes:
    """Return a basic parameter list."""
    return struct.pack(">QQ4xB3x", key, service_key, flags)


class Client:
    """One connection, in the hands of a test."""

    def __init__(self, path: Path, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.connect(str(path))
                break
            except (BlockingIOError, FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "nobody listens"
                time.sleep(0.005)
        if greet:
            assert self.receive(4) == bytes(4)
            self.socket.sendall(bytes(4))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes with descriptors."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], rights)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def unread(self) -> bool:
        """Whether the helper has left something unread."""
        size = bytearray(4)
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, size)
        return any(size)

    def receive(self, count: int) -> bytes:
        """Receive exactly so many bytes; less only at the end of the connection."""
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                break
            data += piece
        return data

    def answer(self) -> Answer:
        """Receive a reply."""
        head = self.receive(104)
        assert len(head) == 104, "the helper has closed the connection"
        status, size, sense = struct.unpack(">iI96s", head)
        data = self.receive(size)
        assert len(data) == size
        return Answer(status, sense, data)

    def ask(self, cdb: bytes, fd: int, parameters: bytes = b"") -> Answer:
        """Send a command and receive the reply."""
        self.send(cdb, [fd])
        if parameters:
            self.socket.sendall(parameters)
        return self.answer()

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False where something else comes."""
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True


class Watched:
    """A descriptor to be passed; tells when nobody else has it any more: the end of a pipe."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()

    def wait_closed(self) -> None:
        """Close our own; wait until all others are closed."""
        os.close(self.fd)
        assert os.read(self.reader, 1) == b""
        os.close(self.reader)
