# SPDX-License-Identifier: Apache-2.0
"""What the queues of both lanes have in common: waiting for requests, and the kick descriptor."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion, resolve_all

if TYPE_CHECKING:
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.ring import Ring


class BaseQueue(ABC):
    """A part of the contract, `vhostblk.virtio_blk.contract.Queue`."""

    def __init__(
        self,
        index: int,
        ring: Ring,
        device: BlkDevice,
        kick_fd: int | None,
        log: RateLimitedLogger,
    ) -> None:
        self.index = index
        self._ring = ring
        self._device = device
        self._kick_fd = kick_fd
        self._log = log
        self._idle: list[Completion[None]] = []
        self._left: list[Completion[None]] = []
        self._abandoned = False

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Requests taken and not completed."""

    @abstractmethod
    def limit_to_left(self) -> int:
        """Take only requests that an earlier process left in flight, from now on.

        Return how many of them have not been taken yet.
        """

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight and everything is published."""
        while self.in_flight:
            idle: Completion[None] = Completion()
            self._idle.append(idle)
            await idle

    async def wait_left(self) -> None:
        """Wait until these requests are taken or abandoned, or the ring breaks."""
        while self.limit_to_left() and not self._abandoned:
            left: Completion[None] = Completion()
            self._left.append(left)
            await left

    def abandon_left(self) -> None:
        """End `wait_left`: the requests stay in the record of requests in flight."""
        self._abandoned = True
        resolve_all(self._left)

    def move(self, memory: GuestMemory) -> None:
        """Go on in a new memory table; held and idle."""
        self._ring.move(memory)

    def kick_copy(self) -> int | None:
        """Return a duplicate of the kick descriptor, for a queue that takes this one's place."""
        return None if self._kick_fd is None else os.dup(self._kick_fd)

    def _close_kick(self) -> None:
        if self._kick_fd is not None:
            os.close(self._kick_fd)
            self._kick_fd = None

    def _warn_broken(self, reason: object) -> None:
        self._log.warning("queue %d is broken: %s", self.index, reason)
