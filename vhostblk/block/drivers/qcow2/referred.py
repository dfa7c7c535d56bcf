# SPDX-License-Identifier: Apache-2.0
"""Taking published entries back where their host clusters become metadata.

In an image that contradicts itself an L2 entry may refer to a cluster that counts as free. It is no
metadata when its slice is loaded, so it is published. Later the cluster may be taken for a table.
From then on a guest's write there has to be looked at, and refused.

Finding such entries takes a look at all that are published. So it is noted where the entries of
loaded slices refer to, and in a sound image these clusters are hardly ever taken for metadata. What
we publish ourselves refers to clusters that count as in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, OVERWRITE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

#: Most clusters that are told apart; those of larger files share notes.
_MAX_NOTES = 16 << 20


class Referred:
    """Clusters that loaded entries refer to; it may name too many."""

    def __init__(self, cluster_bits: int, clusters: int) -> None:
        self._bits = np.uint64(cluster_bits)
        size = min(1 << clusters.bit_length(), _MAX_NOTES)
        self._mask = np.uint64(size - 1)
        self._notes = np.zeros(size, bool)  # pages come into being when they are touched

    def note(self, entries: NDArray[np.uint64]) -> None:
        """Note entries that are published."""
        self._notes[self._clusters(entries) & self._mask] = True

    def _clusters(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        overwritable = entries[(entries & np.uint64(OVERWRITE)) != 0]
        clusters: NDArray[np.uint64] = (overwritable & np.uint64(OFFSET_MASK)) >> self._bits
        return clusters

    def may_refer(self, first: int, count: int) -> bool:
        """Tell whether an entry may refer to one of these clusters."""
        if count >= len(self._notes):
            return True
        clusters = np.arange(first, first + count, dtype=np.uint64)
        return bool(self._notes[clusters & self._mask].any())

    def take_back(self, first: int, count: int, runs: Iterable[NDArray[np.uint64]]) -> bool:
        """Take the entries back that refer to one of these clusters; tell whether there were any.

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
