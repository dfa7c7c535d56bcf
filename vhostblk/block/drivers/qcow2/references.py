# SPDX-License-Identifier: Apache-2.0
"""The number of references to host clusters.

The counts of the file's first clusters are in one array; the kernel allocates only those of its
pages that are touched. The counts of other clusters are sorted by cluster, or kept as ranges. So
memory use depends on the size of the image's tables, not on the offsets in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.ordered import sorted_once
from vhostblk.block.drivers.qcow2.spans import spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.spans import Spans

#: The array has counts for at least this many clusters, or for more if the file's storage is
#: `_STORAGE` times as large as the array.
_NEAR, _STORAGE = 5 << 20, 32
#: Number of counts in a page of memory, as a binary logarithm.
_PAGE_BITS = 9
#: The minimum number of references to sort at once.
_SORTED = 1 << 18
_NONE = np.zeros(0, np.int64)
#: Greater than any cluster number.
_END = 1 << 62


class References:
    """Counts of references; those of clusters from `near` on are kept sorted."""

    def __init__(self, near: int) -> None:
        pages = -(-near >> _PAGE_BITS)
        self._near = np.zeros(pages << _PAGE_BITS, np.int64)
        self._touched = np.zeros(pages, bool)
        #: The other clusters, sorted, and the number of references to each.
        self._far, self._weights = _NONE, _NONE
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._left = 0
        self._ranges = spans(_NONE, _NONE)

    @classmethod
    def of_file(cls, image: Image) -> References:
        """Return empty counts for an image's clusters."""
        node = image.file.node
        storage = (node.allocated_size or 0) // (8 * _STORAGE)
        return cls(min(image.geometry.clusters(node.size), max(_NEAR, storage)))

    def add(self, clusters: NDArray[np.int64], weight: int | NDArray[np.int64] = 1) -> None:
        """Add references; `weight` is the number of references, or one number for each."""
        if not len(clusters):
            return
        near = clusters < len(self._near)
        if near.all():
            self._add_near(clusters, weight)
            return
        if near.any():
            self._add_near(clusters[near], _some(weight, near))
            clusters, weight = clusters[~near], _some(weight, ~near)
        weights = np.broadcast_to(np.asarray(weight, np.int64), clusters.shape)
        self._pending.append((clusters, weights))
        self._left += len(clusters)

    def _add_near(self, clusters: NDArray[np.int64], weight: int | NDArray[np.int64]) -> None:
        # With the type of the counts, this is many times as fast.
        np.add.at(self._near, clusters, np.asarray(weight, np.int64))
        self._touched[clusters >> _PAGE_BITS] = True

    def add_ranges(self, ranges: Spans) -> None:
        """Add references to ranges of clusters; called once."""
        size = len(self._near)
        near = ranges.near(0, size)
        for start, stop, count in zip(*(each.tolist() for each in near), strict=True):
            self._near[start:stop] += count
            self._touched[start >> _PAGE_BITS : (stop - 1 >> _PAGE_BITS) + 1] = True
        self._ranges = ranges.near(size, _END)

    @property
    def untidy(self) -> bool:
        """Whether there is so much to sort that `tidy` should be called, in a thread."""
        return self._left > max(_SORTED, len(self._far) // 2)

    def tidy(self) -> None:
        """Sort the added references."""
        if not self._pending:
            return
        clusters = np.concatenate([self._far, *(each for each, _ in self._pending)])
        weights = np.concatenate([self._weights, *(each for _, each in self._pending)])
        self._pending.clear()
        self._left = 0
        order = np.argsort(clusters)
        clusters, weights = clusters[order], weights[order]
        starts = np.flatnonzero(np.diff(clusters, prepend=-1))
        self._far, self._weights = clusters[starts], np.add.reduceat(weights, starts)

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sorted clusters and their counts, if all counts are outside the array."""
        assert not len(self._near)
        self.tidy()
        return self._far, self._weights

    # Queries.

    def of(self, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the counts of clusters."""
        self.tidy()
        counts = self._ranges.of(clusters)
        near = clusters < len(self._near)
        counts[near] = self._near[clusters[near]]
        if len(self._far) and not near.all():
            places = np.minimum(np.searchsorted(self._far, clusters), len(self._far) - 1)
            counts += np.where(self._far[places] == clusters, self._weights[places], 0)
        return counts

    def window(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the counts of consecutive clusters."""
        self.tidy()
        counts = np.zeros(stop - first, np.int64)
        near = self._near[first:stop]
        counts[: len(near)] = near
        low, high = np.searchsorted(self._far, [first, stop])
        counts[self._far[low:high] - first] += self._weights[low:high]
        ranges = self._ranges.near(first, stop)
        for start, end, count in zip(*(each.tolist() for each in ranges), strict=True):
            counts[start - first : end - first] += count
        return counts

    def distinct(self, first: int, stop: int) -> int:
        """Return the number of clusters in a range that have references."""
        self.tidy()
        ranges = self._ranges.near(first, stop)
        found = int((ranges.stops - ranges.starts).sum())
        found += int(np.count_nonzero(self._near[first:stop]))
        low, high = np.searchsorted(self._far, [first, stop])
        return found + int((ranges.of(self._far[low:high]) == 0).sum())

    @property
    def most(self) -> int:
        """The highest count."""
        self.tidy()
        far = self._weights + self._ranges.of(self._far)
        return max(int(each.max(initial=0)) for each in (self._near, far, self._ranges.counts))

    @property
    def total(self) -> int:
        """An upper limit of the number of distinct clusters with references."""
        ranges = self._ranges
        pages = int(np.count_nonzero(self._touched)) << _PAGE_BITS
        return pages + self._left + len(self._far) + int((ranges.stops - ranges.starts).sum())

    def blocks(self, bits: int) -> NDArray[np.int64]:
        """Return the numbers of the groups of `1 << bits` clusters that may have references."""
        self.tidy()
        pages = np.flatnonzero(self._touched)
        if bits >= _PAGE_BITS:
            near = pages >> bits - _PAGE_BITS
        else:
            per_page = 1 << _PAGE_BITS - bits
            near = (pages[:, None] * per_page + np.arange(per_page)).reshape(-1)
        groups = spans(self._ranges.starts >> bits, (self._ranges.stops - 1 >> bits) + 1)
        return sorted_once(np.concatenate([near, self._far >> bits, groups.listed()]))


def _some(weight: int | NDArray[np.int64], chosen: NDArray[np.bool_]) -> int | NDArray[np.int64]:
    return weight if isinstance(weight, int) else weight[chosen]
