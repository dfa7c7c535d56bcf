# SPDX-License-Identifier: Apache-2.0
"""Making the queues of one virtio block device, on either lane.

numpy and all that needs it are imported by `prepare`, so that start-up stays short.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from vhostblk.block.zones import zone_limits
from vhostblk.imports import import_modules
from vhostblk.virtio_blk.features import Feature, refusal
from vhostblk.virtio_blk.lane import Lane, choose_lane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.engine.iothreads import Iothreads
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.contract import Queue
    from vhostblk.virtqueue.config import VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.memory import GuestMemory

logger = logging.getLogger(__name__)

#: What is imported before queues start, all of it with numpy.
_MODULES = (
    "vhostblk.virtqueue.memory",
    "vhostblk.virtio_blk.device",
    "vhostblk.virtio_blk.queue",
    "vhostblk.virtio_blk.statistics",
    "vhostblk.virtqueue.ring",
)
_EXPRESS_MODULE = "vhostblk.virtio_blk.express"


async def prepare(lane: Lane, *more: str) -> None:
    """Import what serving queues on a lane takes, and `more`."""
    modules = _MODULES if lane is Lane.PYTHON else (*_MODULES, _EXPRESS_MODULE)
    await import_modules(*modules, *more)


class DiskOptions(msgspec.Struct, frozen=True):
    """What an export's options say of its disk."""

    #: The export's name in logs and traces.
    name: str
    #: At most 20 bytes.
    serial: bytes
    writable: bool
    logical_block_size: int
    #: Names of the iothreads that queues are spread over; empty: the default one.
    iothreads: Sequence[str] = ()


class QueueMaker:
    """Makes the queues of one device, on the lane that it has at the time."""

    def __init__(
        self,
        disk: DiskOptions,
        backend: BlockBackend,
        iothreads: Iothreads,
        log: RateLimitedLogger,
    ) -> None:
        self._disk = disk
        self._backend = backend
        self._iothreads = iothreads
        self._log = log
        self.lane = choose_lane()

    def make(
        self,
        config: VringConfig,
        kick_fd: int | None,
        record: InflightPart | None,
        memory: GuestMemory,
        features: int,
    ) -> Queue:
        """Make a queue for a driver that acknowledged `features`.

        `kick_fd` is the queue's then. Raises SetupError where the ring is not usable.
        """
        from vhostblk.virtio_blk.device import BlkDevice
        from vhostblk.virtio_blk.queue import BlkQueue
        from vhostblk.virtqueue.ring import ring_kind

        event_idx = bool(features & Feature.RING_EVENT_IDX.mask)
        kind = ring_kind(packed=config.packed)
        ring = kind(config, memory, event_idx=event_idx, inflight=record)
        if len(ring.left):
            logger.info(
                "export '%s': queue %d: %d requests of an earlier process are done again",
                *(self._disk.name, config.index, len(ring.left)),
            )
        reason = refusal(features, zone_limits(self._backend.node))
        if reason is not None:  # firmware, perhaps: the next driver may know better
            self._log.warning("queue %d: requests fail: %s", config.index, reason)
        device = BlkDevice(
            self._backend,
            serial=self._disk.serial,
            writable=self._disk.writable,
            logical_block_size=self._disk.logical_block_size,
            zoned=bool(features & Feature.ZONED.mask),
            refused=reason is not None,
        )
        if self.lane is Lane.PYTHON:
            return BlkQueue(config.index, ring, device, kick_fd, self._log)
        from vhostblk.virtio_blk.express import ExpressQueue

        iothreads = self._iothreads.start(self._disk.iothreads)
        iothread = iothreads[config.index % len(iothreads)]
        return ExpressQueue(config.index, ring, device, kick_fd, self._log, iothread)

    def extents(self) -> ExtentMap | None:
        """Return the map that queues go by.

        Where blocks of the file are larger than those of the disk, a small write is read, modified
        and written by the block layer, which makes other writes to that block wait. Those that the
        engine does by itself would not, so there all writes are asked.
        """
        extents = self._backend.extent_map()
        if extents is not None and extents.alignment > self._disk.logical_block_size:
            return replace(extents, writable=False)
        return extents
