# SPDX-License-Identifier: Apache-2.0
"""Contract of a character device: a stream of bytes between one peer and one front-end.

The peer is what the options name: who connects to a socket, a terminal, a file. The front-end is
a user inside the daemon, such as a monitor. Everything happens on the event loop; nothing blocks.

    peer comes ──► opened() ──► received()… / write()… ──► closed() ◄── peer goes
                      ▲                                        │
                      └────────── the next peer ◄──────────────┘

Nothing is read from a peer while there is no front-end, or while it has paused reading. What is
written while no peer is there is dropped.
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

#: Bytes handed to `received` at once, at most.
READ_SIZE = 64 << 10


class ChardevError(VhostblkError):
    """A character device can't be made, found or used."""


class Frontend(Protocol):
    """What a character device tells its user. None of these may raise."""

    def opened(self) -> None:
        """A peer is there: a conversation begins."""

    def received(self, data: bytes) -> None:
        """The peer has sent something."""

    def writable(self) -> None:
        """After a refused `write`: the next one will be taken."""

    def closed(self) -> None:
        """The peer is gone; what waited for it is dropped."""


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
        """How `query-chardev` describes the device, such as `unix:/tmp/s,server=on`."""

    @property
    def is_open(self) -> bool:
        """Tell whether a peer is there."""
        return self._open

    @property
    def answer(self) -> Mapping[str, str]:
        """What `chardev-add` returns of the device: `{"pty": "/dev/pts/3"}`."""
        return {}

    @property
    def listeners(self) -> list[Listener]:
        """The sockets on which it waits for peers."""
        return []

    async def start(self) -> None:  # noqa: B027 (most have nothing to do)
        """Open, listen or connect, and wait for the peer where the options say so.

        Called once, before anything else. Raises ChardevError, SocketError or OSError, with all
        taken back.
        """

    async def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Say good-bye to the peer and remove what `start` made; there are no callbacks for it.

        What waits to be written and fits the peer's buffers is delivered first.
        """

    def attach(self, frontend: Frontend) -> None:
        """Begin to serve `frontend`; where a peer is there already, it is told so at once."""
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
        """Send `data` whole, or refuse it whole (False) because too much waits for the peer.

        After a refusal `writable()` is called once there is room. Less than `HIGH_WATER` bytes
        wait when data of any length is taken, so that memory is bounded by the writer's own sizes.
        """
        taken = self._write(data)
        if taken and self.log_fd is not None:
            try:
                os.write(self.log_fd, data)
            except OSError:  # the log is a copy: the conversation is what counts
                pass
        return taken

    @abstractmethod
    def _write(self, data: bytes) -> bool:
        """`write` without the log."""

    async def flush(self) -> None:  # noqa: B027 (most have nothing to do)
        """Wait until everything taken is out of our hands, or the peer is gone."""

    def pause_reading(self) -> None:  # noqa: B027 (most have nothing to do)
        """Leave what the peer sends where it is."""

    def resume_reading(self) -> None:  # noqa: B027 (most have nothing to do)
        """Undo `pause_reading`."""

    def disconnect(self) -> None:  # noqa: B027 (most have nothing to do)
        """Hang up on the peer (`closed()` follows); a device without peers goes on as it is."""

    def send_break(self) -> None:  # noqa: B027 (most have nothing to do)
        """Send a break condition, where the device knows such a thing."""

    def _opened(self) -> None:
        """Tell the front-end that a peer is there."""
        if not self._open:
            self._open = True
            if self.frontend is not None:
                self.frontend.opened()

    def _closed(self) -> None:
        """Tell the front-end that the peer is gone."""
        if self._open:
            self._open = False
            if self.frontend is not None:
                self.frontend.closed()
