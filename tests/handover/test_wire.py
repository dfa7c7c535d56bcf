# SPDX-License-Identifier: Apache-2.0
"""The conversation between two processes."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import open_fds
from vhostblk.handover.errors import HandoverError
from vhostblk.handover.wire import (
    Channel,
    Commit,
    ExportState,
    Failure,
    Fds,
    Guard,
    Hello,
    Ready,
    State,
)


def test_a_message_and_its_descriptors_arrive() -> None:
    """More of them than go at once."""
    before = open_fds()

    async def main() -> None:
        ours, theirs = socket.socketpair()
        left, right = Channel(ours), Channel(theirs)
        sent = Fds()
        files = [os.eventfd(number) for number in range(300)]
        places = [sent.add(fd) for fd in files]
        state = State(
            exports=[ExportState(id="e", state=msgspec.Raw(msgspec.json.encode(places)))],
            guards=[Guard(fd=2, locked=[100])],
            leash=3,
            since=1.5,
        )
        _, (received, fds) = await asyncio.gather(left.send(state, sent), right.receive(State))
        assert received == state
        for number in (0, 150, 299):
            fd = fds.take(number)
            assert os.eventfd_read(fd) == number if number else True
            os.close(fd)
        with pytest.raises(HandoverError, match="descriptor 150 is missing"):
            fds.take(150)
        with pytest.raises(HandoverError, match="descriptor 300 is missing"):
            fds.take(300)
        fds.close()
        for fd in files:
            os.close(fd)
        left.close()
        right.close()

    asyncio.run(main())
    assert open_fds() <= before


async def _received(raw: bytes, kind: type = Ready) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(raw)
    channel = Channel(theirs)
    try:
        _, fds = await channel.receive(kind)
        fds.close()
    finally:
        channel.close()


def _frame(text: bytes, fds: int = 0) -> bytes:
    return struct.pack("=II", len(text), fds) + text


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the other process has closed the connection"),
        (_frame(b'{"type":"Ready"}')[:-1], "the other process has closed the connection"),
        (_frame(b'{"type":"Ready"}', 1), "the other process has closed the connection"),
        (_frame(b'{"type":"Ready"}', 1) + b"\0", "descriptors are missing"),
        (_frame(b'{"type":"Commit"}'), "Commit where Ready is expected"),
        (_frame(b'{"type":"Failure","reason":"no room"}'), "no room"),
        (_frame(b'{"type":"Other"}'), "can't be understood"),
        (struct.pack("=II", 0xFFFFFFFF, 0), "a message of 4294967295 bytes"),
        (struct.pack("=II", 2, 0xFFFFFFFF), "4294967295 descriptors"),
    ],
)
def test_what_is_wrong_is_told(raw: bytes, reason: str) -> None:
    with pytest.raises(HandoverError, match=reason):
        asyncio.run(_received(raw))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(text: bytes) -> None:
    with pytest.raises(HandoverError):
        asyncio.run(_received(_frame(text), Hello))


def test_one_way_messages() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        left, right = Channel(ours), Channel(theirs)
        for message in (Hello(version=1), Ready(), Commit()):
            await left.send(message)
            received, fds = await right.receive(type(message))
            fds.close()
            assert received == message
        await left.send(Failure(reason="because"))
        left.close()
        with pytest.raises(HandoverError, match="because"):
            await right.receive(Commit)
        right.close()

    asyncio.run(main())
