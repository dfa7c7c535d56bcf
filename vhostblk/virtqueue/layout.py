# SPDX-License-Identifier: Apache-2.0
"""Layout of virtqueues, split (VIRTIO 1.3, section 2.7) and packed (2.8).

All fields are little-endian, as VERSION_1 demands.
"""

from __future__ import annotations

import numpy as np

#: struct virtq_desc, 2.7.5.
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

#: struct virtq_avail and virtq_used, 2.7.6 and 2.7.8: le16 flags, le16 idx, the ring, and with
#: EVENT_IDX a final le16 (used_event in the avail ring, avail_event in the used ring).
RING_HEADER_SIZE = 4
RING_INDEX_OFFSET = 2

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

#: struct virtq_used_elem, 2.7.8.
USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])

#: Maximum queue size, 2.7.
MAX_QUEUE_SIZE = 32768


def desc_bytes(size: int) -> int:
    """Return the length of the descriptor table."""
    return DESC.itemsize * size


def avail_bytes(size: int) -> int:
    """Return the length of the avail ring, including used_event."""
    return RING_HEADER_SIZE + 2 * size + 2


def used_bytes(size: int) -> int:
    """Return the length of the used ring, including avail_event."""
    return RING_HEADER_SIZE + USED_ELEM.itemsize * size + 2


#: struct pvirtq_desc, 2.8.13; flags as above, and the two for the owner of a descriptor (2.8.1).
PACKED_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])
PACKED_FLAGS_OFFSET = 14

PACKED_F_AVAIL = 1 << 7
PACKED_F_USED = 1 << 15

#: struct pvirtq_event_suppress, 2.8.14: le16 offset and wrap counter, le16 flags.
EVENT_BYTES = 4
EVENT_FLAGS_OFFSET = 2
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2

#: The bit of the wrap counter in a 16-bit number with a place in the ring.
PLACE_MASK = 0x7FFF
WRAP_BIT = 15


def device_bytes(size: int, *, packed: bool) -> int:
    """Return the length of the data that the device writes at the address of the used ring."""
    return EVENT_BYTES if packed else used_bytes(size)


#: struct QueueRegionSplit and struct DescStateSplit of vhost-user's "Inflight I/O tracking".
INFLIGHT_HEADER_SPLIT = np.dtype(
    [
        ("features", "<u8"),
        ("version", "<u2"),
        ("desc_num", "<u2"),
        ("last_batch_head", "<u2"),
        ("used_idx", "<u2"),
    ]
)
INFLIGHT_DESC_SPLIT = np.dtype(
    [("inflight", "u1"), ("padding", "u1", (5,)), ("next", "<u2"), ("counter", "<u8")]
)

#: struct QueueRegionPacked and struct DescStatePacked.
INFLIGHT_HEADER_PACKED = np.dtype(
    [
        ("features", "<u8"),
        ("version", "<u2"),
        ("desc_num", "<u2"),
        ("free_head", "<u2"),
        ("old_free_head", "<u2"),
        ("used_idx", "<u2"),
        ("old_used_idx", "<u2"),
        ("used_wrap_counter", "u1"),
        ("old_used_wrap_counter", "u1"),
        ("padding", "u1", (10,)),
    ]
)
INFLIGHT_DESC_PACKED = np.dtype(
    [
        ("inflight", "u1"),
        ("padding", "u1"),
        ("next", "<u2"),
        ("last", "<u2"),
        ("num", "<u2"),
        ("counter", "<u8"),
        ("id", "<u2"),
        ("flags", "<u2"),
        ("len", "<u4"),
        ("addr", "<u8"),
    ]
)

#: Version 0 is a record that is not initialised yet.
INFLIGHT_VERSION = 1


def inflight_split_bytes(size: int) -> int:
    """Return the length of the record of requests in flight."""
    return INFLIGHT_HEADER_SPLIT.itemsize + INFLIGHT_DESC_SPLIT.itemsize * size


def inflight_packed_bytes(size: int) -> int:
    """Return the length of a packed queue's record of requests in flight."""
    return INFLIGHT_HEADER_PACKED.itemsize + INFLIGHT_DESC_PACKED.itemsize * size
