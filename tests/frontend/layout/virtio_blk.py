# SPDX-License-Identifier: Apache-2.0
"""Virtio block devices (VIRTIO 1.3, 5.2), and the feature bits of 5.2.3 and 6.

All numbers are little-endian, as in every device with VIRTIO_F_VERSION_1.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

#: Bytes of the unit of `capacity` and of all sector numbers (5.2.4, 5.2.6).
SECTOR_SIZE = 512


class Feature(IntEnum):
    """Feature bits; the value is the bit's number."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VERSION_1 = 32
    RING_PACKED = 34

    @property
    def mask(self) -> int:
        """The bit itself."""
        return 1 << self


class RequestType(IntEnum):
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


class Status(IntEnum):
    """The status byte of a request (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


#: struct virtio_blk_req up to the data (5.2.6).
REQUEST_HEADER = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("sector", "<u8")])

#: struct virtio_blk_discard_write_zeroes (5.2.6), and bit 0 of its flags.
DISCARD_SEGMENT = np.dtype([("sector", "<u8"), ("num_sectors", "<u4"), ("flags", "<u4")])
WRITE_ZEROES_FLAG_UNMAP = 1

#: Length of the string that GET_ID returns (5.2.6).
ID_BYTES = 20

#: struct virtio_blk_config (5.2.4) up to the members of WRITE_ZEROES.
CONFIG = np.dtype(
    [
        ("capacity", "<u8"),
        ("size_max", "<u4"),
        ("seg_max", "<u4"),
        ("geometry", [("cylinders", "<u2"), ("heads", "u1"), ("sectors", "u1")]),
        ("blk_size", "<u4"),
        (
            "topology",
            [
                ("physical_block_exp", "u1"),
                ("alignment_offset", "u1"),
                ("min_io_size", "<u2"),
                ("opt_io_size", "<u4"),
            ],
        ),
        ("writeback", "u1"),
        ("unused0", "u1"),
        ("num_queues", "<u2"),
        ("max_discard_sectors", "<u4"),
        ("max_discard_seg", "<u4"),
        ("discard_sector_alignment", "<u4"),
        ("max_write_zeroes_sectors", "<u4"),
        ("max_write_zeroes_seg", "<u4"),
        ("write_zeroes_may_unmap", "u1"),
        ("unused1", "u1", (3,)),
    ]
)

#: Offset of `writeback` in it, the one member that a driver may write.
CONFIG_WRITEBACK_OFFSET = 32

#: struct virtio_blk_zone_descriptor (5.2.6).
ZONE_DESCRIPTOR = np.dtype(
    [
        ("z_cap", "<u8"),
        ("z_start", "<u8"),
        ("z_wp", "<u8"),
        ("z_type", "u1"),
        ("z_state", "u1"),
        ("reserved", "u1", (38,)),
    ]
)
