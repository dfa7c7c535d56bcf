# SPDX-License-Identifier: Apache-2.0
"""Suspending an export waits for no front-end, and may be cancelled."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.exports.moving import Script, script
from tests.exports.test_moving import start
from tests.virtio_blk.support import turns
from vhostblk.vhost_user.layout import HEADER, INFLIGHT, VERSION, VRING_STATE, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("lane")


@asynccontextmanager
async def busy(directory: Path) -> AsyncIterator[Script]:
    """A front-end whose first queue runs, and has a request in flight that waits for the disk."""
    async with script(directory, packed=False, inband=False) as made:
        for name, arguments, members in start():
            await getattr(made, name)(*arguments, **members)
        writing = await _begin_writing(made)
        yield made
        made.node.finish_all()
        await writing
        await made.write(0)  # all is as it was
        assert made.transcript[-1] == ("used", 1)


async def _begin_writing(made: Script) -> asyncio.Task[None]:
    """Make a request that waits for the disk."""
    made.node.by_hand = True
    writing = asyncio.create_task(made.write(0))
    async with asyncio.timeout(20):
        while not made.node.waiting:
            await turns(1)
    return writing


async def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("late", [False, True], ids=["between", "within"])
def test_cancelled_while_requests_are_in_flight(tmp_path: Path, late: bool) -> None:
    """Without further ado the session continues, once the requests have finished."""

    async def main() -> None:
        async with busy(tmp_path) as made:
            message = HEADER.pack(Request.GET_STATUS, VERSION, 0)
            made._socket.send(message[: 4 * late])
            await turns()
            suspending = asyncio.create_task(made._server.suspend())
            await turns()
            await cancel(suspending)
            made.node.finish_all()
            made._socket.send(message[4 * late :])
            await made._reply(Request.GET_STATUS)

    asyncio.run(asyncio.wait_for(main(), 40))


def test_cancelled_while_a_message_is_carried_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with busy(tmp_path) as made:
            made._send(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
            await turns()
            suspending = asyncio.create_task(made._server.suspend())
            await turns()
            assert not suspending.done()
            await cancel(suspending)
            made.node.finish_all()
            await made._reply(Request.GET_VRING_BASE)
            for name, arguments, members in start():
                await getattr(made, name)(*arguments, **members)

    asyncio.run(asyncio.wait_for(main(), 40))


def test_suspended_again_after_it_was_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with busy(tmp_path) as made:
            for _ in range(2):
                suspending = asyncio.create_task(made._server.suspend())
                await turns()
                await cancel(suspending)
            moving = asyncio.create_task(made.move(fails=True))
            await turns()
            assert not moving.done()
            made.node.finish_all()
            await moving

    asyncio.run(asyncio.wait_for(main(), 40))


def test_stopped_after_it_was_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with script(tmp_path, packed=False, inband=False) as made:
            for name, arguments, members in start()[:-1]:
                await getattr(made, name)(*arguments, **members)
            writing = await _begin_writing(made)
            suspending = asyncio.create_task(made._server.suspend())
            await turns()
            await cancel(suspending)
            stopping = asyncio.create_task(made._server.stop())
            await turns()
            assert not stopping.done()
            made.node.finish_all()
            await stopping
            await writing
            assert not made._server.running
            assert await asyncio.get_running_loop().sock_recv(made._socket, 1) == b""

    asyncio.run(asyncio.wait_for(main(), 40))


@pytest.mark.parametrize("fails", [False, True])
def test_replies_that_nobody_reads_move_along(tmp_path: Path, fails: bool) -> None:
    async def main() -> None:
        async with script(tmp_path, packed=False, inband=False) as made:
            payload = INFLIGHT.pack(0, 0, 2, 16)
            message = HEADER.pack(Request.GET_INFLIGHT_FD, VERSION, len(payload)) + payload
            sent = await _send_until_blocked(made, message)
            await made.move(fails=fails, silent=True)
            count = -(-sent // len(message))
            sending = asyncio.create_task(
                asyncio.get_running_loop().sock_sendall(
                    made._socket, (message * count)[sent:] + message
                )
            )
            for _ in range(count + 1):
                await _take_area(made)
            await sending
            await made.status(1)

    asyncio.run(asyncio.wait_for(main(), 40))


async def _send_until_blocked(made: Script, message: bytes) -> int:
    """Send messages until the server reads no more, as it can't send; return how many bytes."""
    data, sent = message * 100_000, 0
    idle = 0
    while idle < 20:
        try:
            sent += made._socket.send(data[sent : sent + 4096])
            idle = 0
        except BlockingIOError:
            idle += 1
        await turns()
    return sent


async def _take_area(made: Script) -> None:
    """Read the reply to GET_INFLIGHT_FD, which has a descriptor."""
    size = HEADER.size + INFLIGHT.size
    data, fds = b"", []
    while len(data) < size:
        try:
            part, received, _, _ = socket.recv_fds(made._socket, size - len(data), 8)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        assert part, "disconnected"
        data += part
        fds += received
    assert HEADER.unpack(data[: HEADER.size])[0] == Request.GET_INFLIGHT_FD
    assert len(fds) == 1
    os.close(fds[0])
