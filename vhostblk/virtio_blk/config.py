# SPDX-License-Identifier: Apache-2.0
"""The configuration space of a virtio block device (VIRTIO 1.3, section 5.2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.virtio_blk.layout import CONFIG, CONFIG_SECURE_ERASE, CONFIG_ZONED, SECTOR_SIZE
from vhostblk.virtqueue.walker import MAX_CHAIN

if TYPE_CHECKING:
    from vhostblk.block.zones import ZonedLimits

#: Longest request that fits QEMU's block layer as well (BDRV_REQUEST_MAX_SECTORS).
MAX_REQUEST_SECTORS = (1 << 31) // SECTOR_SIZE - 1

#: Segments that one discard or write-zeroes request may carry.
MAX_DISCARD_SEGMENTS = 32


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a device announces; sizes in bytes."""

    size: int
    logical_block_size: int
    num_queues: int
    queue_size: int
    #: Granularity at which discards are useful.
    discard_granularity: int
    #: Preferred request size; 0: unknown.
    optimal_transfer: int
    secure_erase: bool = False
    zoned: ZonedLimits | None = None

    @property
    def seg_max(self) -> int:
        """Data segments a request may have: a chain less header and status."""
        return max(min(self.queue_size, MAX_CHAIN) - 2, 1)


def encode_config(device: DeviceProperties, *, write_cache: bool) -> bytes:
    """Return the configuration space: 60 bytes, 72 with secure erase, 96 with zones."""
    config = np.zeros((), CONFIG)
    block = device.logical_block_size
    config["capacity"] = device.size // SECTOR_SIZE
    config["seg_max"] = device.seg_max
    config["blk_size"] = block
    config["topology"]["min_io_size"] = 1
    config["topology"]["opt_io_size"] = device.optimal_transfer // block or 1
    config["writeback"] = write_cache
    config["num_queues"] = device.num_queues
    config["max_discard_sectors"] = MAX_REQUEST_SECTORS
    config["max_discard_seg"] = MAX_DISCARD_SEGMENTS
    config["discard_sector_alignment"] = max(block, device.discard_granularity) // SECTOR_SIZE
    config["max_write_zeroes_sectors"] = MAX_REQUEST_SECTORS
    config["max_write_zeroes_seg"] = MAX_DISCARD_SEGMENTS
    config["write_zeroes_may_unmap"] = 1
    erase = np.zeros((), CONFIG_SECURE_ERASE)
    if device.secure_erase:
        erase["max_secure_erase_sectors"] = MAX_REQUEST_SECTORS
        erase["max_secure_erase_seg"] = MAX_DISCARD_SEGMENTS
        erase["secure_erase_sector_alignment"] = config["discard_sector_alignment"]
    if device.zoned is not None:
        return config.tobytes() + erase.tobytes() + _encode_zoned(device.zoned)
    return config.tobytes() + (erase.tobytes() if device.secure_erase else b"")


def _encode_zoned(limits: ZonedLimits) -> bytes:
    zoned = np.zeros((), CONFIG_ZONED)
    zoned["zone_sectors"] = limits.zone_size // SECTOR_SIZE
    zoned["max_open_zones"] = limits.max_open
    zoned["max_active_zones"] = limits.max_active
    zoned["max_append_sectors"] = limits.max_append // SECTOR_SIZE
    zoned["write_granularity"] = limits.write_granularity
    zoned["model"] = limits.model
    return zoned.tobytes()
