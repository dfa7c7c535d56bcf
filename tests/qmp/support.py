# SPDX-License-Identifier: Apache-2.0
"""A character device in memory, and a QMP client on it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from vhostblk.chardev.base import Chardev
from vhostblk.qmp.monitors import Monitors

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.daemon import Daemon

NEGOTIATE = b'{"execute": "qmp_capabilities"}'
NEGOTIATE_OOB = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'


class MemoryChardev(Chardev):
    """The test is the peer."""

    def __init__(self, label: str = "c") -> None:
        super().__init__(label)
        #: What the front-end has sent.
        self.sent = bytearray()
        #: Bytes that may wait for the peer; what it has read makes room.
        self.capacity = 1 << 30
        self.reading = False

    @property
    def filename(self) -> str:
        return "memory"

    def _write(self, data: bytes) -> bool:
        if not self._open:
            return True
        if len(self.sent) >= self.capacity:
            return False
        self.sent += data
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def connect(self) -> None:
        self.sent.clear()
        self._opened()

    def hang_up(self) -> None:
        self._closed()

    def take(self) -> list[Any]:
        """Read all that was sent, as messages."""
        text = self.sent.decode("ascii")
        self.sent.clear()
        return messages(text)

    async def send(self, data: bytes) -> None:
        """Send, in pieces as the front-end takes them."""
        for position in range(0, len(data), 1000):
            await until(lambda: self.reading)
            assert self.frontend is not None
            self.frontend.received(data[position : position + 1000])

    async def ask(self, data: bytes, replies: int = 1) -> list[Any]:
        """Send, wait for so many messages and return them."""
        await self.send(data)
        await until(lambda: self.sent.count(b"\r\n") >= replies)
        return self.take()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until `condition` holds."""
    while not condition():  # noqa: ASYNC110 (nothing tells of it)
        await asyncio.sleep(0)


def messages(text: str) -> list[Any]:
    """Split what a monitor sent, one message a line or pretty."""
    decoder = json.JSONDecoder()
    found = []
    position = 0
    while position < len(text):
        value, end = decoder.raw_decode(text, position)
        assert text[end : end + 2] == "\r\n"
        found.append(value)
        position = end + 2
    return found


def monitored(daemon: Daemon, *chardevs: MemoryChardev, pretty: bool = False) -> Monitors:
    """Serve QMP on the devices, each with a client connected."""
    monitors = Monitors(daemon)
    for chardev in chardevs:
        monitors.add(chardev, pretty=pretty)
        chardev.connect()
    return monitors
