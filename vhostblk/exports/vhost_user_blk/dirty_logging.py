# SPDX-License-Identifier: Apache-2.0
"""Dirty logging of a vhost-user device: the log, and the writes that queues log in it.

All changes happen while no request is in flight, so a request is logged completely or not at all.
A log that is too small is refused before anything changes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vhostblk.engine import load
from vhostblk.virtqueue.dirty_log import DirtyLog
from vhostblk.virtqueue.eventfd import adopt_eventfd

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.virtio_blk.queue_set import QueueSet
    from vhostblk.virtqueue.config import LogDescription, VringConfig
    from vhostblk.virtqueue.mapping import LossSignal
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog


def available() -> bool:
    """Return whether writes can be logged: the compiled engine sets bits atomically."""
    return load() is not None


class DirtyLogging:
    """Implements `vhost_user.backend.DirtyLogging` for the queues of one device.

    `watch()` returns the signal to raise when shared memory gets lost.
    """

    def __init__(self, queues: QueueSet, watch: Callable[[], LossSignal]) -> None:
        self._queues = queues
        self._watch = watch
        self._log: DirtyLog | None = None
        self._enabled = False
        #: Guest address and length of the logged used rings, by queue.
        self._used: dict[int, tuple[int, int]] = {}
        self._event_fd: int | None = None

    async def set_log(self, described: LogDescription) -> None:
        """Use this log from now on."""
        try:
            log = DirtyLog(described, self._watch())
        finally:
            os.close(described.fd)
        self._check(log, self._queues.memory, enabled=self._enabled)
        async with self._queues.quiet():
            self._log = log
            self._tell()

    async def set_logging(self, enabled: bool) -> None:
        """Turn logging of requests' writes on or off."""
        if enabled == self._enabled:
            return
        self._check(self._log, self._queues.memory, enabled=enabled)
        async with self._queues.quiet():
            self._enabled = enabled
            self._tell()

    async def set_vring_log(self, config: VringConfig) -> None:
        """Turn logging of writes to the used ring of a running queue on or off."""
        self._check_used(self._log, config)
        async with self._queues.quiet():
            self._note_used(config)
            self._tell()

    async def set_event(self, fd: int) -> None:
        """Set the descriptor that is signalled after writes were logged."""
        adopted = adopt_eventfd(fd, "dirty log")
        async with self._queues.quiet():
            former, self._event_fd = self._event_fd, adopted
            self._tell()
        if former is not None:
            os.close(former)

    def check_memory(self, memory: GuestMemory) -> None:
        """Raise DirtyLogError if the log is too small for a new memory table."""
        self._check(self._log, memory, enabled=self._enabled)

    def check_vring(self, config: VringConfig) -> None:
        """Raise DirtyLogError if the log is too small for a queue's used ring."""
        self._check_used(self._log, config)

    def begin(self, config: VringConfig) -> QueueLog | None:
        """Return the logging state for a queue that starts."""
        self._note_used(config)
        return self._queue_log(config.index)

    def end(self, index: int) -> None:
        """Forget a queue that has stopped."""
        self._used.pop(index, None)

    def reset(self) -> None:
        """Forget the front-end, whose queues have stopped."""
        self._log = None
        self._enabled = False
        self._used.clear()
        if self._event_fd is not None:
            os.close(self._event_fd)
            self._event_fd = None

    def _note_used(self, config: VringConfig) -> None:
        from vhostblk.virtqueue.layout import device_bytes

        self._used.pop(config.index, None)
        if config.log_addr is not None:
            length = device_bytes(config.size, packed=config.packed)
            self._used[config.index] = (config.log_addr, length)

    def _check(self, log: DirtyLog | None, memory: GuestMemory, *, enabled: bool) -> None:
        if log is None:
            return
        if enabled:
            for region in memory.regions:
                log.check(region.guest_addr, region.size, "the memory region")
        for addr, length in self._used.values():
            log.check(addr, length, "the used ring")

    def _check_used(self, log: DirtyLog | None, config: VringConfig) -> None:
        from vhostblk.virtqueue.layout import device_bytes

        if log is not None and config.log_addr is not None:
            length = device_bytes(config.size, packed=config.packed)
            log.check(config.log_addr, length, "the used ring")

    def _tell(self) -> None:
        for index in self._queues.running:
            self._queues.set_log(index, self._queue_log(index))

    def _queue_log(self, index: int) -> QueueLog | None:
        used_addr, _ = self._used.get(index, (None, 0))
        if self._log is None or not (self._enabled or used_addr is not None):
            return None
        from vhostblk.virtqueue.queue_log import QueueLog

        return QueueLog(self._log, data=self._enabled, used_addr=used_addr, event_fd=self._event_fd)
