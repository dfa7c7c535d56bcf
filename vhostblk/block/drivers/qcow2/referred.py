# SPDX-License-Identifier: Apache-2.0
"""How many published entries allow writes to each host cluster.

In an image that contradicts itself an L2 entry may refer to a cluster that counts as free. It is no
metadata when the entry is published. Later the cluster may be taken for a table. From then on a
guest's write there has to be looked at, and refused.

Finding such entries takes a look at all that are published. So the entries are counted, by host
cluster, whenever they are published or taken back. In a sound image no entry refers to a free
cluster, and nothing is searched for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, OVERWRITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Most clusters that are told apart; those of larger files share counts.
_MAX_COUNTS = 16 << 20
#: Of the counts' own type: with others `np.add.at` takes 15 times as long.
_UP, _DOWN = np.int32(1), np.int32(-1)


class Referred:
    """Counts of entries that allow writes."""

    def __init__(self, cluster_bits: int, clusters: int) -> None:
        self._bits = cluster_bits
        size = min(1 << clusters.bit_length(), _MAX_COUNTS)
        self._mask = size - 1
        # Pages come into being when they are touched. A table has less than 2**31 entries.
        self._counts = np.zeros(size, np.int32)

    def replaced(self, old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
        """Note that entries are replaced by others, perhaps of another number."""
        for entries, step in ((old, _DOWN), (new, _UP)):
            overwritable = entries[(entries & np.uint64(OVERWRITE)) != 0]
            if len(overwritable):
                clusters = (overwritable & np.uint64(OFFSET_MASK)) >> np.uint64(self._bits)
                places = (clusters & np.uint64(self._mask)).astype(np.intp)
                np.add.at(self._counts, places, step)

    def replaced_one(self, old: int, new: int) -> None:
        """Do the same for one entry."""
        for entry, step in ((old, -1), (new, 1)):
            if entry & OVERWRITE:
                self._counts[(entry & OFFSET_MASK) >> self._bits & self._mask] += step

    def may_refer(self, first: int, count: int) -> bool:
        """Tell whether an entry may refer to one of these clusters."""
        if count >= len(self._counts):
            return True
        places = np.arange(first, first + count) & self._mask
        return bool(self._counts[places].any())

    def find(self, first: int, count: int, entries: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return which entries refer to one of these clusters."""
        low, high = np.uint64(first << self._bits), np.uint64(first + count << self._bits)
        offsets = entries & np.uint64(OFFSET_MASK)
        allowed = (entries & np.uint64(OVERWRITE)) != 0
        return np.flatnonzero((offsets >= low) & (offsets < high) & allowed)
