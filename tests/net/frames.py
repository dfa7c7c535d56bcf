# SPDX-License-Identifier: Apache-2.0
"""The client's side of WebSocket, written independently of `vhostblk`."""

from __future__ import annotations

import struct
from typing import NamedTuple

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
#: What RFC 6455 (1.3) has for this key.
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

BINARY, TEXT, CLOSE, PING, PONG = 2, 1, 8, 9, 10


def request(
    *extra: bytes, without: bytes = b"", line: bytes = b"GET / HTTP/1.1", end: bytes = b"\r\n\r\n"
) -> bytes:
    """Return an opening request; `without` leaves the header with this name out."""
    headers = [
        b"Host: localhost",
        b"Upgrade: websocket",
        b"Connection: keep-alive, Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + KEY,
    ]
    kept = [each for each in headers if each.partition(b":")[0] != without]
    return b"\r\n".join([line, *extra, *kept]) + end


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    mask: bytes | None = b"\x12\x34\x56\x78",
) -> bytes:
    """Return a frame."""
    length = len(payload)
    masked = 0x80 if mask is not None else 0
    if length < 126:
        head = struct.pack(">BB", final << 7 | opcode, masked | length)
    elif length < 65536:
        head = struct.pack(">BBH", final << 7 | opcode, masked | 126, length)
    else:
        head = struct.pack(">BBQ", final << 7 | opcode, masked | 127, length)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Frame(NamedTuple):
    """One frame of a server's."""

    opcode: int
    payload: bytes


def frames(data: bytes) -> list[Frame]:
    """Take a server's bytes apart; they have to be whole frames, final and without masks."""
    found = []
    while data:
        first, length = data[0], data[1]
        assert first & 0x80
        assert length < 0x80
        start = 2
        if length == 126:
            (length,) = struct.unpack_from(">H", data, 2)
            start = 4
        elif length == 127:
            (length,) = struct.unpack_from(">Q", data, 2)
            start = 10
        assert len(data) >= start + length
        found.append(Frame(first & 0x0F, data[start : start + length]))
        data = data[start + length :]
    return found
