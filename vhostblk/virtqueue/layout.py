# SPDX-License-Identifier: Apache-2.0
"""Layout of split virtqueues (VIRTIO 1.3, section 2.7), little-endian as VERSION_1 demands."""

from __future__ import annotations

import numpy as np

#: struct virtq_desc, 2.7.5.
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

#: struct virtq_avail and virtq_used, 2.7.6 and 2.7.8: le16 flags, le16 idx, the ring, and with
#: EVENT_IDX a trailing le16 (used_event in the avail ring, avail_event in the used ring).
RING_HEADER_SIZE = 4
RING_INDEX_OFFSET = 2

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

#: struct virtq_used_elem, 2.7.8.
USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])

#: Largest queue, 2.7.
MAX_QUEUE_SIZE = 32768


def desc_bytes(size: int) -> int:
    """Length of the descriptor table."""
    return DESC.itemsize * size


def avail_bytes(size: int) -> int:
    """Length of the avail ring, used_event included."""
    return RING_HEADER_SIZE + 2 * size + 2


def used_bytes(size: int) -> int:
    """Length of the used ring, avail_event included."""
    return RING_HEADER_SIZE + USED_ELEM.itemsize * size + 2


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

#: Version 0 is a record that nobody has written yet.
INFLIGHT_VERSION = 1


def inflight_split_bytes(size: int) -> int:
    """Length of the record of requests in flight."""
    return INFLIGHT_HEADER_SPLIT.itemsize + INFLIGHT_DESC_SPLIT.itemsize * size
