# SPDX-License-Identifier: Apache-2.0
"""The number of published entries that allow writes to each host cluster.

In a corrupt image, an L2 entry may refer to a cluster whose refcount is 0. The cluster is not
metadata when the entry is published. Later the cluster may be allocated for a table. From then on,
a guest's write to it has to be checked, and refused.

Finding such entries takes a search of all published entries. To avoid it, the entries are counted
by host cluster whenever they are published or revoked. In a sound image no entry refers to a free
cluster, so there is no search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, OVERWRITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The maximum number of counts. In a larger file, several clusters share a count.
_MAX_COUNTS = 16 << 20
#: With the type of the counts; with another type, `np.add.at` takes 15 times as long.
_UP, _DOWN = np.int32(1), np.int32(-1)


class Referred:
    """Counts of entries that allow writes."""

    def __init__(self, cluster_bits: int, clusters: int) -> None:
        self._bits = cluster_bits
        size = min(1 << clusters.bit_length(), _MAX_COUNTS)
        self._mask = size - 1
        # The kernel allocates pages when they are touched. No count overflows: a table has less
        # than 2**31 entries.
        self._counts = np.zeros(size, np.int32)

    def replaced(self, old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
        """Count replaced entries; `new` may have another length."""
        for entries, step in ((old, _DOWN), (new, _UP)):
            overwritable = entries[(entries & np.uint64(OVERWRITE)) != 0]
            if len(overwritable):
                clusters = (overwritable & np.uint64(OFFSET_MASK)) >> np.uint64(self._bits)
                places = (clusters & np.uint64(self._mask)).astype(np.intp)
                np.add.at(self._counts, places, step)

    def replaced_one(self, old: int, new: int) -> None:
        """Count one replaced entry."""
        for entry, step in ((old, -1), (new, 1)):
            if entry & OVERWRITE:
                self._counts[(entry & OFFSET_MASK) >> self._bits & self._mask] += step

    def may_refer(self, first: int, count: int) -> bool:
        """Return whether an entry may refer to one of these clusters."""
        if count >= len(self._counts):
            return True
        places = np.arange(first, first + count) & self._mask
        return bool(self._counts[places].any())

    def find(self, first: int, count: int, entries: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the indices of the entries that refer to one of these clusters."""
        low, high = np.uint64(first << self._bits), np.uint64(first + count << self._bits)
        offsets = entries & np.uint64(OFFSET_MASK)
        allowed = (entries & np.uint64(OVERWRITE)) != 0
        return np.flatnonzero((offsets >= low) & (offsets < high) & allowed)
