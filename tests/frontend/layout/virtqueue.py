# SPDX-License-Identifier: Apache-2.0
"""Split and packed virtqueues (VIRTIO 1.3, 2.7 and 2.8), and records of requests in flight.

All numbers are little-endian, as in every device with VIRTIO_F_VERSION_1.
"""

from __future__ import annotations

import numpy as np

#: struct virtq_desc (2.7.5) with its flags.
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

#: struct virtq_avail (2.7.6) and struct virtq_used (2.7.8) begin with le16 flags and le16 idx. The
#: ring follows, and behind it used_event or avail_event, le16.
RING_HEADER_SIZE = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

#: struct virtq_used_elem (2.7.8).
USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])

#: The most entries of a split queue (2.7).
MAX_QUEUE_SIZE = 1 << 15


def desc_bytes(size: int) -> int:
    """Return the length of a table of `size` descriptors, split or packed."""
    return 16 * size


def avail_bytes(size: int) -> int:
    """Return the length of struct virtq_avail of `size` entries, with used_event."""
    return RING_HEADER_SIZE + 2 * size + 2


def used_bytes(size: int) -> int:
    """Return the length of struct virtq_used of `size` entries, with avail_event."""
    return RING_HEADER_SIZE + 8 * size + 2


#: struct pvirtq_desc (2.8.13). Its flags are those above and the two of 2.8.1.
PACKED_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])
PACKED_F_AVAIL = 1 << 7
PACKED_F_USED = 1 << 15

#: struct pvirtq_event_suppress (2.8.14): le16 with offset and wrap counter, le16 with flags.
EVENT_BYTES = 4
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2

#: struct DescStateSplit and struct DescStatePacked (vhost-user, "Inflight I/O tracking").
INFLIGHT_DESC_SPLIT = np.dtype(
    [("inflight", "u1"), ("padding", "u1", (5,)), ("next", "<u2"), ("counter", "<u8")]
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
