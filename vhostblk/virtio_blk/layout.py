# SPDX-License-Identifier: Apache-2.0
"""Layout facts of virtio block devices (VIRTIO 1.3, section 5.2).

Everything is little-endian: only VERSION_1 devices are made.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

SECTOR_SIZE = 512


class RequestType(IntEnum):
    """Request types, 5.2.6."""

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
    """The status byte, 5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


#: struct virtio_blk_req up to the data, 5.2.6.
REQUEST_HEADER = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("sector", "<u8")])

#: struct virtio_blk_discard_write_zeroes, 5.2.6.
DISCARD_SEGMENT = np.dtype([("sector", "<u8"), ("num_sectors", "<u4"), ("flags", "<u4")])

#: Bit 0 of the flags of a write-zeroes segment.
WRITE_ZEROES_FLAG_UNMAP = 1

#: Length of the identification string, 5.2.6.
ID_BYTES = 20

#: struct virtio_blk_config, 5.2.4, up to the write-zeroes fields.
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

#: The members behind, with the feature SECURE_ERASE.
CONFIG_SECURE_ERASE = np.dtype(
    [
        ("max_secure_erase_sectors", "<u4"),
        ("max_secure_erase_seg", "<u4"),
        ("secure_erase_sector_alignment", "<u4"),
    ]
)

#: The members behind those, with the feature ZONED: struct virtio_blk_zoned_characteristics.
CONFIG_ZONED = np.dtype(
    [
        ("zone_sectors", "<u4"),
        ("max_open_zones", "<u4"),
        ("max_active_zones", "<u4"),
        ("max_append_sectors", "<u4"),
        ("write_granularity", "<u4"),
        ("model", "u1"),
        ("unused2", "u1", (3,)),
    ]
)

#: struct virtio_blk_zone_report up to the zones, 5.2.6, and struct virtio_blk_zone_descriptor.
ZONE_REPORT_HEADER = np.dtype([("nr_zones", "<u8"), ("reserved", "u1", (56,))])
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

#: What ZONE_APPEND answers before the status byte, `append_sector`.
APPEND_SECTOR_BYTES = 8

#: struct virtio_blk_lifetime, 5.2.6.
LIFETIME = np.dtype([("pre_eol_info", "<u2"), ("typ_a", "<u2"), ("typ_b", "<u2")])

#: Offset of the one byte that a driver may write.
CONFIG_WRITEBACK_OFFSET = 32
