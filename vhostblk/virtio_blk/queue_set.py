# SPDX-License-Identifier: Apache-2.0
"""The queues of one virtio block device, whichever transport brings them.

A `QueueSet` makes, starts, holds, moves and stops queues on either lane. The transport says where
rings and guest memory are, and what a queue is connected with (`Wires`).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from vhostblk.errors import VhostblkError
from vhostblk.trace import points as trace
from vhostblk.virtio_blk.ownership import ImageOwnership
from vhostblk.virtio_blk.queue_maker import QueueMaker, prepare
from vhostblk.virtio_blk.write_cache import WriteCache
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.contract import Queue
    from vhostblk.virtio_blk.lane import Lane
    from vhostblk.virtio_blk.queue_maker import DiskOptions
    from vhostblk.virtqueue.config import VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog


class Wires(msgspec.Struct):
    """What the transport has connected a queue with. The descriptors stay the transport's."""

    #: Notifies the guest; None: the guest polls.
    call_fd: int | None = None
    #: Reports a broken ring.
    err_fd: int | None = None
    #: Where requests in flight are noted. A running queue keeps it.
    record: InflightPart | None = None
    #: Where writes to guest memory are noted.
    log: QueueLog | None = None


class _Running(msgspec.Struct):
    queue: Queue
    config: VringConfig
    wires: Wires


class QueueSet:
    """The queues of one device, by index; also its guest memory and its driver's features."""

    def __init__(
        self,
        disk: DiskOptions,
        backend: BlockBackend,
        iothreads: Iothreads,
        log: RateLimitedLogger,
    ) -> None:
        self._name = disk.name
        self._backend = backend
        self._maker = QueueMaker(disk, backend, iothreads, log)
        self._ownership = ImageOwnership(backend, log)
        self._write_cache = WriteCache(backend)
        #: The virtio features that the driver acknowledged.
        self.features = 0
        self._memory: GuestMemory | None = None
        self._running: dict[int, _Running] = {}
        #: Held while queues come, go, or move: transport and daemon may want that at once.
        self._changing = asyncio.Lock()
        #: The queues that are to be processed, running or not.
        self.enabled: set[int] = set()
        #: The driver's side is about to be disconnected.
        self._leaving = False
        self._drained = False
        #: Statistics of queues that have stopped, by index.
        self._past: dict[int, NDArray[np.void]] = {}

    async def prepare(self, *more: str) -> None:
        """Get ready for the next driver's side: import what serving takes, and `more`."""
        self._leaving = False
        await prepare(self._maker.lane, *self._backend.late_modules, *more)

    @property
    def running(self) -> dict[int, Queue]:
        """The queues that have been started, by index."""
        return {index: running.queue for index, running in self._running.items()}

    def config(self, index: int) -> VringConfig:
        """Return the configuration that a running queue was started with."""
        return self._running[index].config

    @property
    def broken(self) -> bool:
        """Whether a running queue is broken."""
        return any(running.queue.broken for running in self._running.values())

    # What the driver chooses.

    def set_features(self, features: int) -> None:
        """Take the features that the driver acknowledged."""
        self.features = features
        self._write_cache.set_features(features)
        self.refresh()

    def choose_write_cache(self, enabled: bool) -> None:
        """Turn the write cache on or off, as the driver asks."""
        self._write_cache.choose(enabled)
        self.refresh()

    @property
    def chosen_write_cache(self) -> bool | None:
        """What the driver has asked for, if it has."""
        return self._write_cache.chosen

    def refresh(self) -> None:
        """Tell the queues that the disk's size or cache mode has changed."""
        for running in self._running.values():
            running.queue.refresh()

    # Guest memory.

    @property
    def memory(self) -> GuestMemory:
        """The memory table."""
        from vhostblk.virtqueue.memory import GuestMemory

        if self._memory is None:
            self._memory = GuestMemory()
        return self._memory

    async def move(self, memory: GuestMemory) -> None:
        """Move the running queues to a new memory table between two requests.

        Raises SetupError where a ring is not in it: all queues stay in the former one, then.
        """
        async with self.quiet() as queues:
            try:
                for queue in queues:
                    queue.move(memory)
            except VhostblkError:
                for queue in queues:
                    queue.move(self.memory)
                raise
            self._memory = memory

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[list[Queue]]:
        """Hold the running queues, with nothing in flight; none starts or stops meanwhile."""
        async with self._changing:
            queues = list(self.running.values())
            for queue in queues:
                queue.hold()
            try:
                with self._backend.hurried():
                    for queue in queues:
                        await queue.wait_idle()
                yield queues
            finally:
                for queue in queues:
                    queue.release()

    # The life of queues.

    async def claim(self) -> None:
        """Have the image for queues that are to start; raises SetupError where others have it."""
        await self._ownership.take()

    async def start(self, config: VringConfig, kick_fd: int | None, wires: Wires) -> None:
        """Start a queue; without a kick descriptor its ring is polled.

        `kick_fd` is the set's from now on, also where this raises SetupError.
        """
        try:
            await self.claim()
            async with self._changing:
                queue = self._make(config, kick_fd, wires)
                kick_fd = None  # the queue's
                self._begin(queue, config, wires)
        finally:
            if kick_fd is not None:
                os.close(kick_fd)

    def _make(self, config: VringConfig, kick_fd: int | None, wires: Wires) -> Queue:
        return self._maker.make(config, kick_fd, wires.record, self.memory, self.features)

    def _begin(self, queue: Queue, config: VringConfig, wires: Wires) -> None:
        index = config.index
        if index not in self.enabled:
            queue.hold()
        if self._drained:
            queue.hold()
        self._running[index] = _Running(queue, config, wires)
        queue.set_extents(self._maker.extents())
        queue.set_log(wires.log)
        queue.set_err(wires.err_fd)
        if trace.virtio_blk_start_queue.enabled:
            trace.virtio_blk_start_queue(self._name, index, self._maker.lane.value)
        queue.start()
        if wires.call_fd is not None:
            queue.set_call(wires.call_fd)

    async def stop(self, index: int) -> int:
        """Finish what is in flight in a queue; return the base to go on from.

        Requests that an earlier process left in flight are finished too. Raises SetupError where
        these can't be, as `abandon` was called; the queue runs on, then.
        """
        async with self._changing:
            await self._finish_left(self._running[index].queue)
            next_avail = await self._retire(index)
        if not self._running:
            await self._ownership.leave()
        return next_avail

    async def _finish_left(self, queue: Queue) -> None:
        """Process the requests that an earlier process left in flight, and no others.

        This comes before a queue stops, as its base counts these requests as taken. A disabled
        queue processes them, too: it was enabled when they were taken. In a drained section they
        wait for its end. Where they were abandoned they stay in the record.
        """
        if not queue.limit_to_left():
            return
        disabled = queue.index not in self.enabled
        if disabled:
            queue.release()
        try:
            if not self._leaving:
                with self._backend.hurried():
                    await queue.wait_left()
        finally:
            if disabled:
                queue.hold()
        if left := queue.limit_to_left():
            raise SetupError(
                f"queue {queue.index}: {left} requests of an earlier process are not done"
            )

    async def _retire(self, index: int) -> int:
        """Stop a queue and keep its statistics; return the base to go on from."""
        from vhostblk.virtio_blk import statistics

        queue = self._running[index].queue
        if trace.virtio_blk_stop_queue.enabled:
            trace.virtio_blk_stop_queue(self._name, index)
        queue.hold()
        with self._backend.hurried():
            await queue.wait_idle()
        total = self._past.setdefault(index, statistics.empty())
        statistics.add(total, queue.statistics())
        del self._running[index]
        return await queue.stop()

    def hold_all(self) -> None:
        """Have running queues take no more requests."""
        for running in self._running.values():
            running.queue.hold()

    def abandon(self) -> None:
        """Stop waiting for requests that were not taken yet: the next process can process them."""
        self._leaving = True
        for running in self._running.values():
            running.queue.abandon_left()

    async def reset(self) -> None:
        """Stop all queues, finish what is in flight, unmap guest memory; leave the image."""
        async with self._changing:
            for index in list(self._running):
                await self._retire(index)
        await self._ownership.leave()  # also where a queue could not be started
        self.enabled.clear()
        self._memory = None
        self._leaving = False
        self._write_cache.chosen = None
        self.set_features(0)

    async def switch_lane(self, lane: Lane) -> None:
        """Move all queues, present and future, to the other lane; the guest doesn't notice.

        Raises VhostblkError where a queue can't be had there: it stays where it is, then.
        """
        async with self._changing:
            former, self._maker.lane = self._maker.lane, lane
            for index, running in list(self._running.items()) if lane is not former else ():
                kick, wires = running.queue.kick_copy(), running.wires
                next_avail = await self._retire(index)
                config = replace(running.config, next_avail=next_avail)
                try:
                    self._begin(self._make(config, kick, wires), config, wires)
                except BaseException:
                    self._maker.lane = former
                    self._begin(self._make(config, kick, wires), config, wires)
                    raise

    # What changes while queues run.

    def set_enabled(self, index: int, enabled: bool) -> None:
        """Let a queue be processed or not, whether it runs already or not. All begin disabled."""
        if enabled == (index in self.enabled):
            return
        running = self._running.get(index)
        if enabled:
            self.enabled.add(index)
            if running is not None:
                running.queue.release()
        else:
            self.enabled.discard(index)
            if running is not None:
                running.queue.hold()

    def set_call(self, index: int, fd: int | None) -> None:
        """Set the descriptor that notifies the guest, if the queue runs."""
        if (running := self._running.get(index)) is not None:
            running.queue.set_call(fd)
            running.wires.call_fd = fd

    def set_err(self, index: int, fd: int | None) -> None:
        """Set the descriptor that reports a broken ring, if the queue runs."""
        if (running := self._running.get(index)) is not None:
            running.queue.set_err(fd)
            running.wires.err_fd = fd

    def set_log(self, index: int, log: QueueLog | None) -> None:
        """Note what a running queue writes to guest memory, or not; inside `quiet`."""
        running = self._running[index]
        running.queue.set_log(log)
        running.wires.log = log

    # The block layer.

    def drained_begin(self) -> None:
        """Take no more requests: the block graph is about to change."""
        self._drained = True
        self.hold_all()

    def drained_end(self) -> None:
        """Go on."""
        self._drained = False
        extents = self._maker.extents()
        for queue in self.running.values():
            queue.set_extents(extents)
            queue.release()

    # Statistics.

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return what each queue has done since the set was made, by the queue's index.

        See `vhostblk.virtio_blk.statistics.describe` for the form.
        """
        if not self._past and not self._running:
            return {}
        from vhostblk.virtio_blk import statistics

        described = {}
        for index in sorted({*self._past, *self._running}):
            total = statistics.empty()
            if index in self._past:
                statistics.add(total, self._past[index])
            if index in self._running:
                statistics.add(total, self._running[index].queue.statistics())
            described[index] = statistics.describe(total)
        return described
