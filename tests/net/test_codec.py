# SPDX-License-Identifier: Apache-2.0
"""Codecs on top of each other: WebSocket in TLS."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.net.frames import BINARY, CLOSE, Frame, frame, frames, request
from tests.qmp_exports.daemons import VHOSTBLK
from tests.tls.monitors import PATIENCE, client_context, monitor
from tests.tls.sessions import Pair, anonymous
from vhostblk.net.codec import Stack
from vhostblk.net.tls.errors import TlsError
from vhostblk.net.websocket import WebSocket

if TYPE_CHECKING:
    from pathlib import Path

#: A record that nobody has made with the session's keys.
GARBAGE = b"\x17\x03\x03\x00\x20" + bytes(32)


def opened() -> tuple[Pair, Stack]:
    """Return a client, and the server's side of its connection."""
    pair = Pair(anonymous(server=False), anonymous(server=True))
    pair.shake_hands()
    stack = Stack()
    stack.layers = [pair.server, WebSocket()]
    stack.feed(pair.client.encode(request()))
    assert pair.client.feed(stack.encode(b"")).startswith(b"HTTP/1.1 101 ")
    return pair, stack


def test_data_and_good_bye() -> None:
    pair, stack = opened()
    assert stack.feed(pair.client.encode(frame(BINARY, b"hello"))) == b"hello"
    assert frames(pair.client.feed(stack.encode(b"hello yourself"))) == [
        Frame(BINARY, b"hello yourself")
    ]
    assert frames(pair.client.feed(stack.finish())) == [Frame(CLOSE, struct.pack(">H", 1000))]
    assert pair.client.ended
    stack.close()
    pair.close()


def test_good_bye_after_a_failure_below() -> None:
    pair, stack = opened()
    with pytest.raises(TlsError):
        stack.feed(GARBAGE)
    alert = stack.finish()
    with pytest.raises(TlsError, match="fatal alert"):
        pair.client.feed(alert)
    assert stack.encode(b"dropped") == b""
    pair.close()


@pytest.mark.parametrize("layer", ["below", "above"])
def test_a_daemon_survives_garbage_in_either(
    tls_directory: Path, tmp_path: Path, layer: str
) -> None:
    objects = [f"tls-creds-x509,id=creds,endpoint=server,dir={tls_directory},verify-peer=off"]

    async def main() -> None:
        async with monitor(VHOSTBLK, tmp_path / "log", objects, "tls-creds=creds,websocket=on") as (
            _,
            port,
        ):
            for _ in range(2):  # the second client is served, too
                async with asyncio.timeout(PATIENCE):
                    await _converse(port, layer)

    asyncio.run(main())
    assert "Traceback" not in (tmp_path / "log").read_text()


async def _converse(port: int, layer: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(None))
    writer.write(request())
    await reader.readuntil(b"\r\n\r\n")
    greeting = await reader.readuntil(b"}}\r\n")
    (first,) = frames(greeting)
    assert "QMP" in json.loads(first.payload)
    if layer == "above":
        writer.write(frame(BINARY, b"unmasked", mask=None))
    else:
        raw = writer.transport.get_extra_info("socket")
        raw._sock.send(GARBAGE)
    with suppress(OSError):
        await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
