# SPDX-License-Identifier: Apache-2.0
"""Taking back published entries whose host clusters become metadata.

In a corrupt image, an L2 entry may refer to a cluster whose refcount is 0. The cluster is not
metadata when the slice is loaded, so the entry is published. Later the cluster may be allocated for
a table. From then on, a guest's write to it has to be checked, and refused.

To find such entries, all published entries have to be read. This is rarely done: we note the
clusters that entries of loaded slices refer to, and search only if one of them becomes metadata. In
a sound image that hardly ever happens. Entries that are published later refer to clusters in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, OVERWRITE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

#: The number of notes at most. In a larger file, several clusters share a note.
_MAX_NOTES = 16 << 20


class Referred:
    """A set of clusters that loaded entries refer to; it may contain others, too."""

    def __init__(self, cluster_bits: int, clusters: int) -> None:
        self._bits = np.uint64(cluster_bits)
        size = min(1 << clusters.bit_length(), _MAX_NOTES)
        self._mask = np.uint64(size - 1)
        self._notes = np.zeros(size, bool)  # the kernel allocates pages when they are touched

    def note(self, entries: NDArray[np.uint64]) -> None:
        """Note the clusters of entries that are about to be published."""
        self._notes[self._clusters(entries) & self._mask] = True

    def _clusters(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        overwritable = entries[(entries & np.uint64(OVERWRITE)) != 0]
        clusters: NDArray[np.uint64] = (overwritable & np.uint64(OFFSET_MASK)) >> self._bits
        return clusters

    def may_refer(self, first: int, count: int) -> bool:
        """Return whether an entry may refer to one of these clusters."""
        if count >= len(self._notes):
            return True
        clusters = np.arange(first, first + count, dtype=np.uint64)
        return bool(self._notes[clusters & self._mask].any())

    def take_back(self, first: int, count: int, runs: Iterable[NDArray[np.uint64]]) -> bool:
        """Take back the entries that refer to one of these clusters; return whether any did.

        `runs`: all entries that are published.
        """
        low, high = np.uint64(first) << self._bits, np.uint64(first + count) << self._bits
        found = False
        self._notes = np.zeros(len(self._notes), bool)
        for run in runs:
            offsets = run & np.uint64(OFFSET_MASK)
            hit = (offsets >= low) & (offsets < high) & ((run & np.uint64(OVERWRITE)) != 0)
            if hit.any():
                run[hit] = 0
                found = True
            self.note(run)
        return found
