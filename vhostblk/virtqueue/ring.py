# SPDX-License-Identifier: Apache-2.0
"""The choice of split or packed rings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.virtqueue.layout import inflight_packed_bytes, inflight_split_bytes
from vhostblk.virtqueue.packed import PackedQueue
from vhostblk.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

Ring = SplitQueue | PackedQueue


def ring_kind(*, packed: bool) -> type[Ring]:
    """Return the class of the negotiated rings."""
    return PackedQueue if packed else SplitQueue


def inflight_bytes(*, packed: bool) -> Callable[[int], int]:
    """Return the function from the queue's size to the length of its record in flight."""
    return inflight_packed_bytes if packed else inflight_split_bytes
