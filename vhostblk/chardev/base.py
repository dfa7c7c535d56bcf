# SPDX-License-Identifier: Apache-2.0
"""Contract of a character device: a stream of bytes between one peer and one front-end.

The peer is what the options name: the client of a socket, a terminal, a file. The front-end is a
user inside the daemon, such as a monitor. All calls are made on the event loop; none blocks.

    peer comes ──► opened() ──► received()… / write()… ──► closed() ◄── peer goes
                      ▲                                        │
                      └────────── the next peer ◄──────────────┘

While there is no front-end, or while it has paused reading, nothing is read from the peer. Data
that is written while there is no peer is dropped.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.net.listener import Listener

#: Bytes that may wait for the peer before `write` refuses more.
HIGH_WATER = 256 << 10

#: Maximum number of bytes in one call of `received`.
READ_SIZE = 64 << 10


class ChardevError(VhostblkError):
    """A character device can't be created, found or used."""


class Frontend(Protocol):
    """The callbacks of a character device's user. None of these may raise."""

    def opened(self) -> None:
        """A peer has connected: a conversation begins."""

    def received(self, data: bytes) -> None:
        """The peer has sent something."""

    def writable(self) -> None:
        """After a refused `write`: there is room again."""

    def closed(self) -> None:
        """The peer has disconnected; data that was queued for it is dropped."""


class Chardev(ABC):
    """One character device; `label` is its id."""

    def __init__(self, label: str) -> None:
        self.label = label
        #: Descriptor of the file that gets a copy of everything written (`logfile`).
        self.log_fd: int | None = None
        self.frontend: Frontend | None = None
        self._open = False

    @property
    @abstractmethod
    def filename(self) -> str:
        """The description of the device in `query-chardev`, such as `unix:/tmp/s,server=on`."""

    @property
    def is_open(self) -> bool:
        """Whether there is a peer."""
        return self._open

    @property
    def answer(self) -> Mapping[str, str]:
        """The answer of `chardev-add` for the device: `{"pty": "/dev/pts/3"}`."""
        return {}

    @property
    def listeners(self) -> list[Listener]:
        """The sockets on which it waits for peers."""
        return []

    async def start(self) -> None:  # noqa: B027 (most have nothing to do)
        """Open, listen or connect, and wait for the peer if the options ask for that.

        Called once, before anything else. Raises ChardevError, SocketError or OSError, and then
        leaves nothing behind.
        """

    async def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Disconnect the peer, without callbacks, and remove all that `start` created.

        Queued data is delivered first, as far as it fits the peer's buffers.
        """

    def attach(self, frontend: Frontend) -> None:
        """Begin to serve `frontend`; `opened()` is called at once if there is a peer."""
        if self.frontend is not None:
            raise ChardevError(f"chardev '{self.label}' is already in use")
        self.frontend = frontend
        if self._open:
            frontend.opened()
        self.resume_reading()

    def detach(self) -> None:
        """Forget the front-end, without a callback."""
        self.pause_reading()
        self.frontend = None

    def write(self, data: bytes) -> bool:
        """Queue all of `data`, or refuse all of it (False) because the queue is full.

        After a refusal, `writable()` is called once there is room. Data of any length is accepted
        while fewer than `HIGH_WATER` bytes are queued, so the writer's sizes bound the memory.
        """
        taken = self._write(data)
        if taken and self.log_fd is not None:
            try:
                os.write(self.log_fd, data)
            except OSError:  # the log is only a copy
                pass
        return taken

    @abstractmethod
    def _write(self, data: bytes) -> bool:
        """Write without the log."""

    async def flush(self) -> None:  # noqa: B027 (most have nothing to do)
        """Wait until all queued data is sent, or the peer has disconnected."""

    def pause_reading(self) -> None:  # noqa: B027 (most have nothing to do)
        """Stop reading from the peer."""

    def resume_reading(self) -> None:  # noqa: B027 (most have nothing to do)
        """Read from the peer again."""

    def disconnect(self) -> None:  # noqa: B027 (most have nothing to do)
        """Disconnect the peer (`closed()` follows); no effect on devices without connections."""

    def send_break(self) -> None:  # noqa: B027 (most have nothing to do)
        """Send a break condition, if the device supports it."""

    def _opened(self) -> None:
        """Tell the front-end that a peer has connected."""
        if not self._open:
            self._open = True
            if self.frontend is not None:
                self.frontend.opened()

    def _closed(self) -> None:
        """Tell the front-end that the peer has disconnected."""
        if self._open:
            self._open = False
            if self.frontend is not None:
                self.frontend.closed()
