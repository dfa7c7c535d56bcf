# SPDX-License-Identifier: Apache-2.0
"""The other end of a wire port."""

from __future__ import annotations

import select
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.engine.support import TIMEOUT

if TYPE_CHECKING:
    import socket

_REQUEST = struct.Struct("<BBHIQ")
_ANSWER = struct.Struct("<IHH")
READ = 0


class Answer(NamedTuple):
    """An answer: an errno or 0, and data."""

    error: int
    data: bytes


class WireClient:
    """Sends requests, each with a cookie, and takes answers in any order."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(TIMEOUT)
        self._cookie = 0
        self._lengths: dict[int, int] = {}
        self._answers: dict[int, Answer] = {}

    def send(self, kind: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> int:
        """Send a request; return its cookie."""
        self._cookie = (self._cookie + 1) & 0xFFFF
        self._lengths[self._cookie] = length if kind == READ else 0
        header = _REQUEST.pack(kind, flags, self._cookie, length, offset)
        self.connection.sendall(header + data)
        return self._cookie

    def wait(self, cookie: int) -> Answer:
        """Return the answer to a request."""
        while cookie not in self._answers:
            error, found, _ = _ANSWER.unpack(self._receive(_ANSWER.size))
            length = 0 if error else self._lengths.pop(found)
            self._answers[found] = Answer(error, self._receive(length))
        return self._answers.pop(cookie)

    def has(self, cookie: int) -> bool:
        """Tell whether the answer to a request has begun to come, or some answer has."""
        if cookie in self._answers:
            return True
        return bool(select.select([self.connection], [], [], 0)[0])

    def _receive(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.connection.recv(size)
            assert part, "the port has closed the connection"
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
