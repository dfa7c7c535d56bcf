# SPDX-License-Identifier: Apache-2.0
"""The device behind a vhost-user-blk export's server: it connects a front-end to a `QueueSet`.

`VhostUserBlkDevice` maps the guest memory, and owns the descriptors and shared areas that the
front-end has sent. The queues are in `vhostblk.virtio_blk.queue_set`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from vhostblk.block.zones import zone_limits
from vhostblk.exports.vhost_user_blk import dirty_logging, offer
from vhostblk.exports.vhost_user_blk.inflight_records import InflightRecords
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.schema.base import UNSET
from vhostblk.trace import points as trace
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.virtio_blk.features import Feature, refusal
from vhostblk.virtio_blk.queue_maker import DiskOptions
from vhostblk.virtio_blk.queue_maker import prepare as prepare_lane
from vhostblk.virtio_blk.queue_set import QueueSet, Wires
from vhostblk.virtqueue.eventfd import adopt_eventfd
from vhostblk.virtqueue.mapping import LossSignal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
    from vhostblk.vhost_user.backend import BackendChannel
    from vhostblk.virtio_blk.lane import Lane
    from vhostblk.virtqueue.config import InflightDescription, RegionDescription, VringConfig
    from vhostblk.virtqueue.mapping import Mapping
    from vhostblk.virtqueue.memory import GuestMemory

logger = logging.getLogger(__name__)

#: The device ID of QEMU's export.
DEFAULT_SERIAL = "vhost_user_blk"

#: Modules for front-ends besides those for queues; they import numpy.
_MODULE = "vhostblk.virtio_blk.config"


async def prepare(lane: Lane) -> None:
    """Import the modules for serving on a lane."""
    await prepare_lane(lane, _MODULE)


def _disk(options: BlockExportOptionsVhostUserBlk) -> DiskOptions:
    serial = DEFAULT_SERIAL if options.serial is UNSET else options.serial
    return DiskOptions(
        options.id,
        serial.encode("ascii"),
        options.writable,
        options.logical_block_size,
        options.iothread_names(),
    )


class VhostUserBlkDevice:
    """The device behind the server; see `vhostblk.vhost_user.backend.Backend` for the contract."""

    def __init__(
        self,
        options: BlockExportOptionsVhostUserBlk,
        backend: BlockBackend,
        iothreads: Iothreads,
    ) -> None:
        self._options = options
        self._backend = backend
        self._log = RateLimitedLogger(logger, f"export '{options.id}': ")
        self.queues = QueueSet(_disk(options), backend, iothreads, self._log)
        self._call_fds: dict[int, int] = {}
        self._err_fds: dict[int, int] = {}
        self._records = InflightRecords(self._watch)
        #: Signals that the front-end has truncated memory that it shares.
        self._loss: LossSignal | None = None
        self._disconnect: Callable[[str], None] | None = None
        #: Logs writes to guest memory; None if that is not available.
        self.dirty_logging: dirty_logging.DirtyLogging | None = None
        if dirty_logging.available():
            self.dirty_logging = dirty_logging.DirtyLogging(self.queues, self._watch)
        self._channel: BackendChannel | None = None
        #: The configuration space that the front-end has read last.
        self._shown_config: bytes | None = None

    # Features and configuration space.

    @property
    def device_features(self) -> int:
        """The features of this device, which depend on its options."""
        return offer.device_features(self._options, self._backend)

    @property
    def num_queues(self) -> int:
        """The number of queues that a front-end may use."""
        return self._options.num_queues

    async def prepare(self) -> None:
        """Import the modules for serving."""
        await self.queues.prepare(_MODULE)

    @property
    def needs_reset(self) -> bool:
        """Whether a queue is broken."""
        return self.queues.broken

    def refusal(self, features: int) -> str | None:
        """Return why a driver with these features can't use the disk; None if it can."""
        return refusal(features, zone_limits(self._backend.node))

    def get_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space, with zeroes past its end."""
        self._shown_config = offer.configuration(self._options, self._backend)
        return self._shown_config[offset : offset + size].ljust(size, b"\0")

    def set_config(self, offset: int, data: bytes) -> None:
        """Turn the write cache on or off, which is the only field that a driver may write."""
        from vhostblk.virtio_blk.layout import CONFIG_WRITEBACK_OFFSET

        if offset != CONFIG_WRITEBACK_OFFSET or len(data) != 1 or data[0] > 1:
            raise VhostUserError(
                f"configuration space: {len(data)} bytes at {offset} are not writable"
            )
        self.queues.choose_write_cache(bool(data[0]))

    def written_config(self) -> list[tuple[int, bytes]]:
        """Return the value that the driver has written to `writeback`, if any."""
        chosen = self.queues.chosen_write_cache
        if chosen is None:
            return []
        from vhostblk.virtio_blk.layout import CONFIG_WRITEBACK_OFFSET

        return [(CONFIG_WRITEBACK_OFFSET, bytes([chosen]))]

    def set_features(self, features: int) -> None:
        """Take the features that the driver acknowledged."""
        self.queues.set_features(features)

    # Guest memory.

    async def set_memory(self, regions: Sequence[RegionDescription]) -> list[Mapping]:
        """Replace the whole memory table."""
        from vhostblk.virtqueue.memory import GuestMemory, map_regions

        mapped = map_regions(regions, self._watch())
        await self._change_memory(GuestMemory(mapped))
        return [region.mapping for region in mapped]

    async def add_region(self, region: RegionDescription) -> Mapping:
        """Add one region."""
        from vhostblk.virtqueue.memory import map_regions

        (mapped,) = map_regions([region], self._watch())
        await self._change_memory(self.queues.memory.with_region(mapped))
        return mapped.mapping

    async def remove_region(self, guest_addr: int, size: int, user_addr: int) -> None:
        """Remove one region."""
        await self._change_memory(self.queues.memory.without_region(guest_addr, size, user_addr))

    def _watch(self) -> LossSignal:
        """Return the signal for the loss of shared memory."""
        if self._loss is None:
            self._loss = LossSignal()
            asyncio.get_running_loop().add_reader(self._loss.fd, self._memory_lost)
        return self._loss

    def _unwatch(self) -> None:
        if self._loss is not None:
            asyncio.get_running_loop().remove_reader(self._loss.fd)
            self._loss = None

    def _memory_lost(self) -> None:
        """End the session of a front-end that has truncated its memory; take no more requests."""
        self._unwatch()
        self.queues.hold_all()
        self.abandon()
        if self._disconnect is not None:
            self._disconnect("it has truncated memory that it shares")

    async def _change_memory(self, memory: GuestMemory) -> None:
        """Switch the running queues to a new memory table between two requests."""
        if self.dirty_logging is not None:
            self.dirty_logging.check_memory(memory)
        if trace.vhost_user_blk_set_memory.enabled:
            trace.vhost_user_blk_set_memory(self._options.id, len(self.queues.running))
        await self.queues.move(memory)

    # Requests in flight.

    def make_inflight(self, num_queues: int, queue_size: int) -> InflightDescription:
        """Create shared memory for the record of requests in flight."""
        return self._records.make(num_queues, queue_size)

    def set_inflight(self, inflight: InflightDescription | None) -> None:
        """Record requests there, and continue with those recorded already; None: no record."""
        self._records.use(inflight, packed=bool(self.queues.features & Feature.RING_PACKED.mask))

    # Queues.

    async def claim(self) -> None:
        """Activate the image for queues that are about to start."""
        await self.queues.claim()

    async def start_vring(self, config: VringConfig, kick_fd: int | None) -> None:
        """Start a queue."""
        kick = None if kick_fd is None else adopt_eventfd(kick_fd, "kick")
        index = config.index
        wires = Wires(self._call_fds.get(index), self._err_fds.get(index))
        try:
            if self.dirty_logging is not None:
                self.dirty_logging.check_vring(config)
            wires.record = self._records.part(config)
        except BaseException:
            if kick is not None:
                os.close(kick)
            raise
        if self.dirty_logging is not None:
            wires.log = self.dirty_logging.begin(config)
        try:
            await self.queues.start(config, kick, wires)
        except BaseException:
            if self.dirty_logging is not None:
                self.dirty_logging.end(index)
            raise

    async def set_vring_log(self, index: int, log_addr: int | None) -> None:
        """Turn logging of writes to a used ring on or off."""
        assert self.dirty_logging is not None
        config = replace(self.queues.config(index), log_addr=log_addr)
        await self.dirty_logging.set_vring_log(config)

    async def stop_vring(self, index: int) -> int:
        """Complete requests in flight; return the base from which the queue can continue."""
        next_avail = await self.queues.stop(index)
        if self.dirty_logging is not None:
            self.dirty_logging.end(index)
        self.set_vring_call(index, None)
        return next_avail

    def abandon(self) -> None:
        """Don't wait for requests that are not taken yet: the next process can take them."""
        self.queues.abandon()

    def set_vring_enabled(self, index: int, enabled: bool) -> None:
        """Enable or disable a queue."""
        self.queues.set_enabled(index, enabled)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Set the descriptor that notifies the guest."""
        adopted = None if fd is None else adopt_eventfd(fd, "call")
        self.queues.set_call(index, adopted)
        _replace(self._call_fds, index, adopted)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Set the descriptor that notifies the front-end of a broken queue."""
        adopted = None if fd is None else adopt_eventfd(fd, "error")
        self.queues.set_err(index, adopted)
        _replace(self._err_fds, index, adopted)

    async def switch_lane(self, lane: Lane) -> None:
        """Move all queues, present and future, to the other lane; the guest doesn't notice."""
        await self.queues.switch_lane(lane)

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return the statistics of each queue since the export started, by its index."""
        return self.queues.statistics()

    # The front-end and the block layer.

    def set_disconnect(self, disconnect: Callable[[str], None] | None) -> None:
        """Set the callback that disconnects the front-end."""
        self._disconnect = disconnect

    def set_channel(self, channel: BackendChannel | None) -> None:
        """Set the channel for notifying the front-end of changes."""
        self._channel = channel

    def resized(self) -> None:
        """Tell the front-end that the configuration space has changed."""
        self.queues.refresh()
        if self._channel is not None:
            self._channel.config_changed()

    def drained_begin(self) -> None:
        """Take no more requests, because the block graph is about to change."""
        self.queues.drained_begin()

    def drained_end(self) -> None:
        """Take requests again."""
        self.queues.drained_end()
        self._tell_other_config()

    def _tell_other_config(self) -> None:
        """Notify the front-end if the configuration space differs from what it has read."""
        if self._channel is None or self._shown_config is None:
            return
        if offer.configuration(self._options, self._backend) != self._shown_config:
            self._shown_config = None
            self._channel.config_changed()

    async def reset(self) -> None:
        """Forget the front-end: complete its requests, close its descriptors, unmap its memory."""
        await self.queues.reset()
        for fds in (self._call_fds, self._err_fds):
            for fd in fds.values():
                os.close(fd)
            fds.clear()
        self._unwatch()
        self._records.reset()
        if self.dirty_logging is not None:
            self.dirty_logging.reset()
        self._channel = None
        self._shown_config = None


def _replace(fds: dict[int, int], index: int, fd: int | None) -> None:
    """Store a descriptor, and close the previous one, which is not used any more."""
    old = fds.pop(index, None)
    if fd is not None:
        fds[index] = fd
    if old is not None:
        os.close(old)
