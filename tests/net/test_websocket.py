# SPDX-License-Identifier: Apache-2.0
"""WebSocket: the server's side, without I/O, and on the socket of a daemon as on QEMU's."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.frames import ACCEPT, BINARY, CLOSE, PING, PONG, TEXT, Frame, frame, frames, request
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK
from tests.tls.monitors import PATIENCE, monitor
from vhostblk.net.errors import WebSocketError
from vhostblk.net.websocket import WebSocket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_exports.daemons import Program


def opened() -> WebSocket:
    socket = WebSocket()
    socket.feed(request())
    assert socket.established
    socket.encode(b"")
    return socket


@given(st.integers(1, 300), st.sampled_from([b"", b"Sec-WebSocket-Protocol: chat, binary"]))
def test_the_handshake(chunk: int, protocol: bytes) -> None:
    socket = WebSocket()
    asked = request(*([protocol] if protocol else []))
    for start in range(0, len(asked), chunk):
        assert not socket.established
        assert socket.feed(asked[start : start + chunk]) == b""
    assert socket.established
    answer = socket.encode(b"")
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n" in answer
    assert (b"\r\nSec-WebSocket-Protocol: binary\r\n" in answer) == bool(protocol)
    assert answer.endswith(b"\r\n\r\n")


#: Requests that are refused, and why; QEMU gets them as well.
REFUSED = {
    "method": (request(line=b"POST / HTTP/1.1"), "Unsupported HTTP method POST"),
    "no-path": (request(line=b"GET"), "Missing HTTP path delimiter"),
    "no-version": (request(line=b"GET /"), "Missing HTTP version delimiter"),
    "path": (request(line=b"GET /other HTTP/1.1"), "Unexpected HTTP path /other"),
    "http": (request(line=b"GET / HTTP/1.0"), "Unsupported HTTP version HTTP/1.0"),
    "header": (request(b"nonsense"), "Malformed HTTP header"),
    "headers": (request(*[b"A: b"] * 40), "Too many HTTP headers"),
    "too-long": (request(b"A: " + b"b" * 4096), "End of headers not found in first 4096 bytes"),
    "no-end": (b"A" * 4096, "End of headers not found in first 4096 bytes"),
    "host": (request(without=b"Host"), "Missing websocket host header data"),
    "upgrade": (request(without=b"Upgrade"), "Missing websocket upgrade header data"),
    "connection": (request(without=b"Connection"), "Missing websocket connection header data"),
    "version": (
        request(without=b"Sec-WebSocket-Version"),
        "Missing websocket version header data",
    ),
    "key": (request(without=b"Sec-WebSocket-Key"), "Missing websocket key header data"),
    "old": (
        request(b"Sec-WebSocket-Version: 8"),
        "Version '13' is not supported by client '8'",
    ),
    "short-key": (
        request(b"Sec-WebSocket-Key: abc"),
        "Key length '3' was not as expected '24'",
    ),
    "protocol": (
        request(b"Sec-WebSocket-Protocol: chat"),
        "No 'binary' protocol is supported by client 'chat'",
    ),
    "no-upgrade": (
        request(b"Connection: close"),
        "No connection upgrade requested 'close'",
    ),
    "method-of-upgrade": (request(b"Upgrade: h2c"), "Incorrect upgrade method 'h2c'"),
    "control": (
        request(b"Upgrade: \x1b[31m\xff"),
        "Incorrect upgrade method '\\x1b[31m\\\\xff'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_are_refused(name: str) -> None:
    asked, reason = REFUSED[name]
    socket = WebSocket()
    with pytest.raises(WebSocketError) as caught:
        socket.feed(asked)
    assert str(caught.value) == f"WebSocket handshake failed: {reason}"
    assert socket.encode(b"").startswith(b"HTTP/1.1 4")
    assert not socket.established


@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 50))
def test_messages(parts: list[bytes], chunk: int) -> None:
    socket = opened()
    wire = b"".join(frame(BINARY, part) for part in parts)
    received = b"".join(
        socket.feed(wire[start : start + chunk]) for start in range(0, len(wire), chunk)
    )
    assert received == b"".join(parts)
    assert socket.encode(b"") == b""


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_lengths(length: int) -> None:
    socket = opened()
    data = bytes(range(256)) * (length // 256 + 1)
    data = data[:length]
    assert socket.feed(frame(BINARY, data)) == data
    assert frames(socket.encode(data)) == ([Frame(BINARY, data)] if data else [])


def test_a_message_in_parts_with_others_between() -> None:
    socket = opened()
    wire = (
        frame(BINARY, b"one ", final=False)
        + frame(PING, b"are you there?")
        + frame(0, b"two ", final=False)
        + frame(PONG, b"unasked")
        + frame(0, b"three")
        + frame(BINARY, b" four")
    )
    assert b"".join(socket.feed(wire[at : at + 1]) for at in range(len(wire))) == (
        b"one two three four"
    )
    assert frames(socket.encode(b"x")) == [Frame(PONG, b"are you there?"), Frame(BINARY, b"x")]


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9going away"])
def test_the_client_says_good_bye(payload: bytes) -> None:
    socket = opened()
    assert socket.feed(frame(BINARY, b"last") + frame(CLOSE, payload) + b"ignored") == b"last"
    assert socket.ended
    (answer,) = frames(socket.encode(b"dropped"))
    assert answer == Frame(CLOSE, payload or b"\x03\xe8peer requested close")
    assert socket.finish() == b""


def test_the_server_says_good_bye() -> None:
    socket = opened()
    assert frames(socket.finish()) == [Frame(CLOSE, b"\x03\xe8")]
    assert socket.finish() == b""
    assert WebSocket().finish() == b""


#: Frames that are refused: code and reason.
BAD_FRAMES = {
    "text": (
        frame(TEXT, b"x"),
        (1003, "only binary, close, ping, and pong frames are supported"),
    ),
    "reserved": (
        frame(3, b"x"),
        (1003, "only binary, close, ping, and pong frames are supported"),
    ),
    "text-in-parts": (
        frame(TEXT, b"x", final=False),
        (1008, "only binary frames may be fragmented"),
    ),
    "ping-in-parts": (
        frame(PING, b"x", final=False),
        (1008, "only binary frames may be fragmented"),
    ),
    "unmasked": (frame(BINARY, b"xxxxxx", mask=None), (1002, "client frames must be masked")),
    "large-ping": (frame(PING, bytes(126)), (1002, "control frame is too large")),
    "large-close": (frame(CLOSE, bytes(70_000)), (1002, "control frame is too large")),
    "nothing-to-continue": (
        frame(0, b"x"),
        (1003, "only binary, close, ping, and pong frames are supported"),
    ),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_frames_that_are_refused(name: str) -> None:
    wire, (code, reason) = BAD_FRAMES[name]
    socket = opened()
    with pytest.raises(WebSocketError, match=f"^WebSocket: {reason}$"):
        socket.feed(wire)
    assert frames(socket.encode(b"")) == [Frame(CLOSE, struct.pack(">H", code) + reason.encode())]
    assert socket.ended


@given(st.binary(max_size=60), st.booleans())
def test_anything_at_all(data: bytes, established: bool) -> None:
    socket = opened() if established else WebSocket()
    with suppress(WebSocketError):
        socket.feed(data)
    assert len(socket.encode(b"")) <= 1000 + len(data)


async def answer_to(port: int, asked: bytes) -> bytes:
    """Send a request; return all that comes until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(asked)
            with suppress(ConnectionResetError):  # by who has not read all
                while chunk := await reader.read(1 << 16):
                    answer += chunk
    finally:
        writer.close()
    return answer


def normal(answer: bytes) -> bytes:
    """Remove what differs: names, dates, and the end of headers, which QEMU forgets at times."""
    return re.sub(rb"(Server|Date): [^\r]*", rb"\1: ", answer).rstrip()


def test_requests_that_qemu_refuses_too(tmp_path: Path) -> None:
    async def answers(program: Program) -> dict[str, bytes]:
        found = {}
        async with monitor(program, tmp_path / program.name, [], "websocket=on") as (_, port):
            for name, (asked, _) in REFUSED.items():
                if len(asked) > 4096 or name == "no-path":
                    continue  # the answer may be lost, as not all is read; QEMU gives none
                found[name] = normal(await answer_to(port, asked))
        return found

    ours, theirs = asyncio.run(answers(VHOSTBLK)), asyncio.run(answers(QEMU_10))
    for name, answer in theirs.items():
        assert ours[name] == answer, name


def test_frames_that_are_refused_by_a_daemon(tmp_path: Path) -> None:
    """Each costs its own connection: the next client is served."""

    async def main() -> None:
        async with monitor(VHOSTBLK, tmp_path / "log", [], "websocket=on") as (_, port):
            for wire, (code, reason) in BAD_FRAMES.values():
                *greeting, last = frames(await _conversation(port, wire))
                assert b"".join(each.payload for each in greeting)[:7] == b'{"QMP":'
                assert last == Frame(CLOSE, struct.pack(">H", code) + reason.encode())

    asyncio.run(main())


async def _conversation(port: int, wire: bytes) -> bytes:
    """Send frames after the handshake; return what comes behind it."""
    answer = await answer_to(port, request() + wire)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return answer.partition(b"\r\n\r\n")[2]


def test_qmp(tmp_path: Path) -> None:
    async def main() -> None:
        async with monitor(VHOSTBLK, tmp_path / "log", [], "websocket=on") as (session, port):
            (device,) = [
                each
                for each in (await session.run("query-chardev"))["return"]
                if each["label"] == "m"
            ]
            assert device["filename"] == f"disconnected:websocket:127.0.0.1:{port},server=on"
            wire = frame(PING, b"hello")
            wire += frame(BINARY, b'{"execute": "qmp_capabilities"} {"execute": "quit"}')
            sent = frames(await _conversation(port, wire))
            assert Frame(PONG, b"hello") in sent
            assert sent[-1] == Frame(CLOSE, struct.pack(">H", 1000))
            lines = b"".join(each.payload for each in sent if each.opcode == BINARY).splitlines()
            assert [json.loads(line) for line in lines[1:3]] == [{"return": {}}, {"return": {}}]

    asyncio.run(main())
