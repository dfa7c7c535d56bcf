# SPDX-License-Identifier: Apache-2.0
"""Fuzzer of what clients send before they are anybody: `python -m fuzz connection`.

The first byte chooses a WebSocket before or after its handshake, or a TLS server before or after
its own; the second is the length of the pieces in which the rest comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.net.errors import WebSocketError
from vhostblk.net.tls.credentials import AnonymousCredentials, Source
from vhostblk.net.tls.errors import TlsError
from vhostblk.net.tls.session import TlsSession
from vhostblk.net.websocket import WebSocket

if TYPE_CHECKING:
    from vhostblk.net.codec import Codec

#: What an answer may be longer than what it answers.
_ROOM = 20_000

_server, _client = (
    AnonymousCredentials(Source(None, server), priority=None, verify_peer=True)
    for server in (True, False)
)


def one_input(data: bytes) -> None:
    """Run one input."""
    if len(data) < 2:
        return
    kind, step, rest = data[0] % 4, data[1] + 1, data[2:]
    if kind < 2:
        assert _feed(_websocket(bool(kind)), rest, step) == _feed(
            _websocket(bool(kind)), rest, len(rest) + 1
        )
    else:
        _feed(_tls(kind == 3), rest, step)


def _feed(codec: Codec, data: bytes, step: int) -> tuple[bytes, bool, bool]:
    """Return what the user gets, and whether the conversation ended, and by a fault."""
    received = b""
    failed = False
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    for piece in (*pieces, b""):  # at last, what has come with the end of a handshake
        try:
            received += codec.feed(piece)
        except (WebSocketError, TlsError):
            failed = True
        if failed or codec.ended:
            break
    assert len(codec.encode(b"")) + len(codec.finish()) <= len(data) + _ROOM
    codec.close()
    return received, codec.ended or failed, codec.established


def _websocket(established: bool) -> Codec:
    socket = WebSocket()
    if established:
        socket.feed(_request())
        socket.encode(b"")
        assert socket.established
    return socket


def _request() -> bytes:
    from tests.net.frames import request

    return request()


def _tls(established: bool) -> Codec:
    server = TlsSession(_server)
    if established:
        client = TlsSession(_client)
        client.feed(b"")
        while not (client.established and server.established):
            server.feed(client.encode(b""))
            client.feed(server.encode(b""))
        client.close()
    return server


def seeds() -> dict[str, bytes]:
    """Return inputs to begin with."""
    from tests.net.frames import BINARY, CLOSE, PING, frame, request

    client = TlsSession(_client)
    client.feed(b"")
    hello = client.encode(b"")
    client.close()
    wire = frame(BINARY, b"one", final=False) + frame(PING, b"x") + frame(0, b"two" * 60)
    return {
        "request": b"\x00\x10" + request(b"Sec-WebSocket-Protocol: binary") + wire,
        "frames": b"\x01\x03" + wire + frame(BINARY, bytes(300)) + frame(CLOSE, b"\x03\xe8"),
        "hello": b"\x02\x20" + hello,
        "alert": b"\x03\x05\x15\x03\x03\x00\x02\x01\x00\x17\x03\x03\x00\x20" + bytes(32),
    }
