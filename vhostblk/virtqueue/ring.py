# SPDX-License-Identifier: Apache-2.0
"""Split or packed: what serves a queue need not know which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.virtqueue.layout import inflight_packed_bytes, inflight_split_bytes
from vhostblk.virtqueue.packed import PackedQueue
from vhostblk.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

Ring = SplitQueue | PackedQueue


def ring_kind(*, packed: bool) -> type[Ring]:
    """Return the class of rings that was negotiated."""
    return PackedQueue if packed else SplitQueue


def inflight_bytes(*, packed: bool) -> Callable[[int], int]:
    """Return what tells the length of the record of requests in flight, by the queue's size."""
    return inflight_packed_bytes if packed else inflight_split_bytes
