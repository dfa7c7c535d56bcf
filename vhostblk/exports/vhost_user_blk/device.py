# SPDX-License-Identifier: Apache-2.0
"""The device behind a vhost-user-blk export's server: a block backend as a virtio disk.

`VhostUserBlkBackend` owns guest memory and the queues of the front-end that is connected. numpy and
all that needs it are imported with the first front-end, so that start-up stays short.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vhostblk.errors import VhostblkError
from vhostblk.exports.vhost_user_blk import dirty_logging, offer
from vhostblk.exports.vhost_user_blk.inflight_records import InflightRecords
from vhostblk.exports.vhost_user_blk.ownership import ImageOwnership
from vhostblk.imports import import_modules
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.schema.base import UNSET
from vhostblk.trace import points as trace
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.lane import Lane, choose_lane
from vhostblk.virtqueue.eventfd import adopt_eventfd
from vhostblk.virtqueue.mapping import LossSignal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
    from vhostblk.vhost_user.backend import BackendChannel
    from vhostblk.virtio_blk.express import ExpressQueue
    from vhostblk.virtio_blk.queue import BlkQueue
    from vhostblk.virtqueue.config import InflightDescription, RegionDescription, VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.mapping import Mapping
    from vhostblk.virtqueue.memory import GuestMemory

logger = logging.getLogger(__name__)

#: What QEMU's export answers to GET_ID.
DEFAULT_SERIAL = "vhost_user_blk"


#: What is imported with the first front-end, all of it with numpy.
_MODULES = (
    "vhostblk.virtqueue.memory",
    "vhostblk.virtio_blk.config",
    "vhostblk.virtio_blk.device",
    "vhostblk.virtio_blk.queue",
    "vhostblk.virtio_blk.statistics",
    "vhostblk.virtqueue.ring",
)
_EXPRESS_MODULE = "vhostblk.virtio_blk.express"


async def prepare(lane: Lane, *more: str) -> None:
    """Import what serving on a lane takes."""
    modules = _MODULES if lane is Lane.PYTHON else (*_MODULES, _EXPRESS_MODULE)
    await import_modules(*modules, *more)


class VhostUserBlkBackend:
    """The device behind the server; see `vhostblk.vhost_user.backend.Backend` for the contract."""

    def __init__(
        self,
        options: BlockExportOptionsVhostUserBlk,
        backend: BlockBackend,
        iothreads: Iothreads,
    ) -> None:
        self._options = options
        self._iothreads = iothreads
        self._lane = choose_lane()
        self._backend = backend
        self._log = RateLimitedLogger(logger, f"export '{options.id}': ")
        self._ownership = ImageOwnership(backend, self._log)
        self._default_write_cache = backend.enable_write_cache
        #: What the driver wrote to `writeback`, if it did.
        self._chosen_write_cache: bool | None = None
        self._features = 0
        self._memory: GuestMemory | None = None
        self._queues: dict[int, BlkQueue | ExpressQueue] = {}
        #: Held while queues come, go, or move: front-end and daemon may want that at once.
        self._changing = asyncio.Lock()
        self._configs: dict[int, VringConfig] = {}
        #: The front-end is about to be disconnected.
        self._leaving = False
        #: Statistics of queues that have stopped, by index.
        self._past: dict[int, NDArray[np.void]] = {}
        self._enabled: set[int] = set()
        self._call_fds: dict[int, int] = {}
        self._err_fds: dict[int, int] = {}
        self._records = InflightRecords(self._watch)
        #: Tells that the front-end has truncated memory that it shares.
        self._loss: LossSignal | None = None
        self._disconnect: Callable[[str], None] | None = None
        self._drained = False
        #: Notes writes to guest memory; None where that can't be done.
        self.dirty_logging: dirty_logging.DirtyLogging | None = None
        if dirty_logging.available():
            self.dirty_logging = dirty_logging.DirtyLogging(
                self._quiet_queues, lambda: self.memory, self._watch
            )
        self._channel: BackendChannel | None = None
        #: The configuration space as the front-end has read it last.
        self._shown_config: bytes | None = None

    # What is offered.

    @property
    def device_features(self) -> int:
        """The features of this device, after its options."""
        return offer.device_features(self._options, self._backend)

    @property
    def num_queues(self) -> int:
        """How many queues a front-end may use."""
        return self._options.num_queues

    async def prepare(self) -> None:
        """Import what serving takes."""
        self._leaving = False
        await prepare(self._lane, *self._backend.late_modules)

    @property
    def needs_reset(self) -> bool:
        """Tell whether a queue is broken."""
        return any(queue.broken for queue in self._queues.values())

    def refusal(self, features: int) -> str | None:
        """Say why a driver that accepted these features can't use the disk; None: it can."""
        return offer.refusal(features, self._backend)

    def get_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space, zeroes past its end."""
        self._shown_config = offer.configuration(self._options, self._backend)
        return self._shown_config[offset : offset + size].ljust(size, b"\0")

    def set_config(self, offset: int, data: bytes) -> None:
        """Turn the write cache on or off, the one thing that a driver may write."""
        from vhostblk.virtio_blk.layout import CONFIG_WRITEBACK_OFFSET

        if offset != CONFIG_WRITEBACK_OFFSET or len(data) != 1 or data[0] > 1:
            raise VhostUserError(
                f"configuration space: {len(data)} bytes at {offset} are not writable"
            )
        self._chosen_write_cache = bool(data[0])
        self._set_write_cache()

    def written_config(self) -> list[tuple[int, bytes]]:
        """Return what the driver has written to `writeback`, if anything."""
        if self._chosen_write_cache is None:
            return []
        from vhostblk.virtio_blk.layout import CONFIG_WRITEBACK_OFFSET

        return [(CONFIG_WRITEBACK_OFFSET, bytes([self._chosen_write_cache]))]

    def set_features(self, features: int) -> None:
        """Take the features that the driver acknowledged.

        Drivers follow each other on one connection (firmware, then the system), so nothing that
        one of them implied is kept for the next.
        """
        self._features = features
        if not features & Feature.CONFIG_WCE.mask:
            self._chosen_write_cache = None
        self._set_write_cache()

    def _set_write_cache(self) -> None:
        """Work out whether writes may stay in caches until the driver flushes.

        Not with the option `writethrough`. Else the driver has its choice, and where it has made
        none they may, unless it can't flush (VIRTIO 1.3, 5.2.5.2 and 5.2.6.2). Before the features
        are known they may.
        """
        may = self._chosen_write_cache
        if may is None:
            may = not self._features or bool(self._features & Feature.FLUSH.mask)
        self._backend.enable_write_cache = self._default_write_cache and may
        self._refresh_queues()

    # Guest memory.

    @property
    def memory(self) -> GuestMemory:
        """The memory table."""
        from vhostblk.virtqueue.memory import GuestMemory

        if self._memory is None:
            self._memory = GuestMemory()
        return self._memory

    async def set_memory(self, regions: Sequence[RegionDescription]) -> list[Mapping]:
        """Replace the whole table."""
        from vhostblk.virtqueue.memory import GuestMemory, map_regions

        mapped = map_regions(regions, self._watch())
        await self._change_memory(GuestMemory(mapped))
        return [region.mapping for region in mapped]

    async def add_region(self, region: RegionDescription) -> Mapping:
        """Add one region."""
        from vhostblk.virtqueue.memory import map_regions

        (mapped,) = map_regions([region], self._watch())
        await self._change_memory(self.memory.with_region(mapped))
        return mapped.mapping

    async def remove_region(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Remove one region."""
        await self._change_memory(self.memory.without_region(guest_addr, size, user_addr))

    def _watch(self) -> LossSignal:
        """Return what is to be told when shared memory gets lost."""
        if self._loss is None:
            self._loss = LossSignal()
            asyncio.get_running_loop().add_reader(self._loss.fd, self._memory_lost)
        return self._loss

    def _unwatch(self) -> None:
        if self._loss is not None:
            asyncio.get_running_loop().remove_reader(self._loss.fd)
            self._loss = None

    def _memory_lost(self) -> None:
        """End the session of a front-end that pulls its memory away; take no more requests."""
        self._unwatch()
        for queue in self._queues.values():
            queue.hold()
        self.abandon()
        if self._disconnect is not None:
            self._disconnect("it has truncated memory that it shares")

    async def _change_memory(self, memory: GuestMemory) -> None:
        """Move the running queues to a new table between two requests."""
        if self.dirty_logging is not None:
            self.dirty_logging.check_memory(memory)
        async with self._quiet_queues() as queues:
            if trace.vhost_user_blk_set_memory.enabled:
                trace.vhost_user_blk_set_memory(self._options.id, len(queues))
            try:
                for queue in queues:
                    queue.move(memory)
            except VhostblkError:
                for queue in queues:
                    queue.move(self.memory)
                raise
            self._memory = memory

    @asynccontextmanager
    async def _quiet_queues(self) -> AsyncIterator[list[BlkQueue | ExpressQueue]]:
        async with self._changing:
            queues = list(self._queues.values())
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

    # Requests in flight.

    def make_inflight(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Make memory to note them in."""
        return self._records.make(num_queues, queue_size)

    def set_inflight(self, inflight: InflightDescription | None) -> None:
        """Note them there, and go on with those that are noted already; None: nowhere."""
        self._records.use(inflight, packed=bool(self._features & Feature.RING_PACKED.mask))

    # Queues.

    async def claim(self) -> None:
        """Have the image for queues that are to start."""
        await self._ownership.take()

    async def start_vring(self, config: VringConfig, kick_fd: int | None) -> None:
        """Start a queue."""
        kick = None if kick_fd is None else adopt_eventfd(kick_fd, "kick")
        try:
            await self._ownership.take()
        except VhostblkError:
            if kick is not None:
                os.close(kick)
            raise
        async with self._changing:
            try:
                if self.dirty_logging is not None:
                    self.dirty_logging.check_vring(config)
                record = self._records.part(config)
                queue = self._make_queue(config, record, kick)
            except BaseException:
                if kick is not None:
                    os.close(kick)
                raise
            self._configs[config.index] = config
            self._records.begin(config.index, record)
            self._start_queue(queue)

    def _make_queue(
        self, config: VringConfig, record: InflightPart | None, kick: int | None
    ) -> BlkQueue | ExpressQueue:
        from vhostblk.virtio_blk.device import BlkDevice
        from vhostblk.virtio_blk.queue import BlkQueue
        from vhostblk.virtqueue.ring import ring_kind

        event_idx = bool(self._features & Feature.RING_EVENT_IDX.mask)
        kind = ring_kind(packed=config.packed)
        ring = kind(config, self.memory, event_idx=event_idx, inflight=record)
        if len(ring.left):
            logger.info(
                "export '%s': queue %d: %d requests of an earlier process are done again",
                *(self._options.id, config.index, len(ring.left)),
            )
        serial = self._options.serial
        reason = self.refusal(self._features)
        if reason is not None:  # firmware, perhaps: the next driver may know better
            self._log.warning("queue %d: requests fail: %s", config.index, reason)
        device = BlkDevice(
            self._backend,
            serial=(DEFAULT_SERIAL if serial is UNSET else serial).encode("ascii"),
            writable=self._options.writable,
            logical_block_size=self._options.logical_block_size,
            zoned=bool(self._features & Feature.ZONED.mask),
            refused=reason is not None,
        )
        if self._lane is Lane.PYTHON:
            return BlkQueue(config.index, ring, device, kick, self._log)
        from vhostblk.virtio_blk.express import ExpressQueue

        iothreads = self._iothreads.start(self._options.iothread_names())
        iothread = iothreads[config.index % len(iothreads)]
        return ExpressQueue(config.index, ring, device, kick, self._log, iothread)

    def _start_queue(self, queue: BlkQueue | ExpressQueue) -> None:
        index = queue.index
        if index not in self._enabled:
            queue.hold()
        if self._drained:
            queue.hold()
        self._queues[index] = queue
        queue.set_extents(self._extents())
        if self.dirty_logging is not None:
            queue.set_log(self.dirty_logging.begin(self._configs[index]))
        queue.set_err(self._err_fds.get(index))
        if trace.vhost_user_blk_start_queue.enabled:
            trace.vhost_user_blk_start_queue(self._options.id, index, self._lane.value)
        queue.start()
        if index in self._call_fds:
            queue.set_call(self._call_fds[index])

    async def _retire(self, queue: BlkQueue | ExpressQueue) -> int:
        """Stop a queue and keep its statistics; return the base to go on from."""
        from vhostblk.virtio_blk import statistics

        if trace.vhost_user_blk_stop_queue.enabled:
            trace.vhost_user_blk_stop_queue(self._options.id, queue.index)
        queue.hold()
        with self._backend.hurried():
            await queue.wait_idle()
        total = self._past.setdefault(queue.index, statistics.empty())
        statistics.add(total, queue.statistics())
        del self._queues[queue.index]
        return await queue.stop()

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return what each queue has done since the export started, by the queue's index.

        See `vhostblk.virtio_blk.statistics.describe` for the form.
        """
        if not self._past and not self._queues:
            return {}
        from vhostblk.virtio_blk import statistics

        described = {}
        for index in sorted({*self._past, *self._queues}):
            total = statistics.empty()
            if index in self._past:
                statistics.add(total, self._past[index])
            if index in self._queues:
                statistics.add(total, self._queues[index].statistics())
            described[index] = statistics.describe(total)
        return described

    def _extents(self) -> ExtentMap | None:
        """Return the map that queues go by.

        Where blocks of the file are larger than those of the disk, a small write is read, modified
        and written by the block layer, which makes other writes to that block wait. Those that the
        engine does by itself would not, so there all writes are asked.
        """
        extents = self._backend.extent_map()
        if extents is not None and extents.alignment > self._options.logical_block_size:
            return replace(extents, writable=False)
        return extents

    async def switch_lane(self, lane: Lane) -> None:
        """Move all queues, present and future, to the other lane; the guest doesn't notice.

        Raises VhostblkError where a queue can't be had there: it stays where it is, then.
        """
        async with self._changing:
            former, self._lane = self._lane, lane
            for index in list(self._queues) if lane is not former else ():
                queue = self._queues[index]
                kick = queue.kick_copy()
                next_avail = await self._retire(queue)
                config = replace(self._configs[index], next_avail=next_avail)
                record = self._records.of(index)
                try:
                    self._start_queue(self._make_queue(config, record, kick))
                except BaseException:
                    self._lane = former
                    self._start_queue(self._make_queue(config, record, kick))
                    raise

    async def set_vring_log(self, index: int, log_addr: int | None) -> None:
        """Note writes to a used ring in the dirty log, or not."""
        assert self.dirty_logging is not None
        config = replace(self._configs[index], log_addr=log_addr)
        await self.dirty_logging.set_vring_log(config)
        self._configs[index] = config

    async def stop_vring(self, index: int) -> int:
        """Finish what is in flight; return the base to go on from."""
        async with self._changing:
            await self._finish_left(self._queues[index])
            next_avail = await self._stop_vring(index)
        if not self._queues:
            await self._ownership.leave()
        return next_avail

    async def _stop_vring(self, index: int) -> int:
        next_avail = await self._retire(self._queues[index])
        self._records.end(index)
        if self.dirty_logging is not None:
            self.dirty_logging.end(index)
        self.set_vring_call(index, None)
        return next_avail

    async def _finish_left(self, queue: BlkQueue | ExpressQueue) -> None:
        """Process the requests that an earlier process left in flight, and no others.

        This comes before a queue stops, as its base counts these requests as taken. A disabled
        queue processes them, too: it was enabled when they were taken. In a drained section they
        wait for its end. Raises VhostUserError if the front-end is about to be disconnected; the
        requests then stay in the record.
        """
        if not queue.limit_to_left():
            return
        disabled = queue.index not in self._enabled
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
            raise VhostUserError(
                f"queue {queue.index}: {left} requests of an earlier process are not done"
            )

    def abandon(self) -> None:
        """Stop waiting for requests that were not taken yet: the next process can process them."""
        self._leaving = True
        for queue in self._queues.values():
            queue.abandon_left()

    def set_vring_enabled(self, index: int, enabled: bool) -> None:
        """Let a queue be processed or not."""
        if enabled == (index in self._enabled):
            return
        queue = self._queues.get(index)
        if enabled:
            self._enabled.add(index)
            if queue is not None:
                queue.release()
        else:
            self._enabled.discard(index)
            if queue is not None:
                queue.hold()

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Set the descriptor that notifies the guest."""
        adopted = None if fd is None else adopt_eventfd(fd, "call")
        if index in self._queues:
            self._queues[index].set_call(adopted)
        _replace(self._call_fds, index, adopted)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Set the descriptor that tells the front-end of a broken queue."""
        adopted = None if fd is None else adopt_eventfd(fd, "error")
        if index in self._queues:
            self._queues[index].set_err(adopted)
        _replace(self._err_fds, index, adopted)

    def _refresh_queues(self) -> None:
        for queue in self._queues.values():
            queue.refresh()

    # The front-end and the block layer.

    def set_disconnect(self, disconnect: Callable[[str], None] | None) -> None:
        """Set the way to get rid of the front-end."""
        self._disconnect = disconnect

    def set_channel(self, channel: BackendChannel | None) -> None:
        """Set the way to tell the front-end of changes."""
        self._channel = channel

    def resized(self) -> None:
        """Tell the front-end that the configuration space has changed."""
        self._refresh_queues()
        if self._channel is not None:
            self._channel.config_changed()

    def drained_begin(self) -> None:
        """Take no more requests: the block graph is about to change."""
        self._drained = True
        for queue in self._queues.values():
            queue.hold()

    def drained_end(self) -> None:
        """Go on."""
        self._drained = False
        extents = self._extents()
        for queue in self._queues.values():
            queue.set_extents(extents)
            queue.release()
        self._tell_other_config()

    def _tell_other_config(self) -> None:
        """Tell the front-end where what it has read is no longer so: the graph may be another."""
        if self._channel is None or self._shown_config is None:
            return
        if offer.configuration(self._options, self._backend) != self._shown_config:
            self._shown_config = None
            self._channel.config_changed()

    async def reset(self) -> None:
        """Forget the front-end: finish its requests, close its descriptors, unmap its memory."""
        async with self._changing:
            for index in list(self._queues):
                await self._stop_vring(index)
        await self._ownership.leave()  # also where a queue could not be started
        for fds in (self._call_fds, self._err_fds):
            for fd in fds.values():
                os.close(fd)
            fds.clear()
        self._enabled.clear()
        self._unwatch()
        self._memory = None
        self._records.reset()
        self._leaving = False
        if self.dirty_logging is not None:
            self.dirty_logging.reset()
        self._channel = None
        self._shown_config = None
        self._features = 0
        self._chosen_write_cache = None
        self._set_write_cache()


def _replace(fds: dict[int, int], index: int, fd: int | None) -> None:
    """Keep a descriptor instead of the one before, which nothing uses any more, and close that."""
    old = fds.pop(index, None)
    if fd is not None:
        fds[index] = fd
    if old is not None:
        os.close(old)
