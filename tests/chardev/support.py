# SPDX-License-Identifier: Apache-2.0
"""A front-end that remembers, and a way to run a test with devices."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vhostblk.chardev.options import chardev_options
from vhostblk.chardev.registry import Chardevs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vhostblk.chardev.base import Chardev

#: Seconds for what takes milliseconds on an idle machine.
PATIENCE = 60


class Recorder:
    """A front-end."""

    def __init__(self) -> None:
        self.data = b""
        self.news: list[str] = []

    def opened(self) -> None:
        self.news.append("opened")

    def received(self, data: bytes) -> None:
        self.data += data

    def writable(self) -> None:
        self.news.append("writable")

    def closed(self) -> None:
        self.news.append("closed")


class Devices(Chardevs):
    """Devices made as on the command line."""

    async def make(self, text: str) -> Chardev:
        options = chardev_options(text)
        return await self.add(options.id, options.backend)

    async def make_with_frontend(self, text: str) -> tuple[Chardev, Recorder]:
        device = await self.make(text)
        recorder = Recorder()
        device.attach(recorder)
        return device, recorder


@asynccontextmanager
async def devices() -> AsyncIterator[Devices]:
    """Have a set of devices that is closed at the end."""
    made = Devices()
    try:
        yield made
    finally:
        await made.close()


async def noticed(made: Devices) -> None:
    """Wait until the loop has taken notice of all that was sent before.

    It has when it has seen what is sent now: it looks at all sockets at once.
    """
    ours, theirs = socket.socketpair()
    with ours:
        device, witness = await made.make_with_frontend(f"socket,id=witness,fd={theirs.detach()}")
        ours.send(b"x")
        await until(lambda: witness.data == b"x")
        device.detach()
        await made.remove("witness")


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is the case."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (conditions are of all kinds)
            await asyncio.sleep(0.001)
