# SPDX-License-Identifier: Apache-2.0
"""Storage for metadata, had before there is data that needs it.

Tables change in memory and are written much later. If the file system is full by then, nothing
leads to the data that the guest was told is written. So each cluster of metadata gets its storage
before its first change in memory, and a request that needs it fails where there is no room. This
costs one call a cluster, not one a request. A new cluster is filled with zeroes. One that was there
before may be a hole, as in a sparse copy of an image; it is given storage when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.edge import Edge


class Places:
    """Which clusters of metadata are known to have storage."""

    def __init__(self, file: Edge, cluster_bits: int) -> None:
        self._file = file
        self._bits = cluster_bits
        self._known: set[int] = set()

    async def make(self, offset: int) -> None:
        """Fill a new cluster with zeroes that have storage; raises OSError."""
        await self._file.pwrite_zeroes(offset, 1 << self._bits)
        self._known.add(offset >> self._bits)

    async def ensure(self, offset: int) -> None:
        """Have storage for the cluster that an offset is in; raises OSError."""
        cluster = offset >> self._bits
        if cluster not in self._known:
            await self._file.reserve(cluster << self._bits, 1 << self._bits)
            self._known.add(cluster)

    def gone(self, first: int, count: int) -> None:
        """Note that clusters have been discarded."""
        last = first + count
        if count < len(self._known):
            self._known.difference_update(range(first, last))
        else:
            self._known = {each for each in self._known if not first <= each < last}
