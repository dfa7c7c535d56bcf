# SPDX-License-Identifier: Apache-2.0
"""Storage for metadata, allocated before the data that needs it.

Tables change in memory and are written much later. If the file system is full by then, the
references to the data of completed writes can't be written. So each cluster of metadata gets
storage before its first change in memory, and a request that needs it fails if there is no room.
This costs one call for each cluster, not for each request. A new cluster is filled with zeroes. An
existing cluster may be a hole, as in a sparse copy of an image, or share its storage with a
reflinked copy; it gets storage of its own when first needed.

A file system that never writes in place (btrfs with its defaults, ZFS) can't promise this: each
write needs new storage, whatever was reserved. XFS can, also for reflinked copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.edge import Edge


class Places:
    """The clusters of metadata that are known to have storage."""

    def __init__(self, file: Edge, cluster_bits: int, used: Callable[[int], object]) -> None:
        """`used` is called with the number of each cluster that gets storage."""
        self._file = file
        self._used = used
        self._bits = cluster_bits
        self._known: set[int] = set()

    async def make(self, offset: int) -> None:
        """Write zeroes to a new cluster, so that it has storage; raises OSError."""
        await self._file.pwrite_zeroes(offset, 1 << self._bits)
        self._known.add(offset >> self._bits)

    async def ensure(self, offset: int) -> None:
        """Get storage for the cluster that contains `offset`, if it has none; raises OSError."""
        cluster = offset >> self._bits
        if cluster not in self._known:
            await self._file.reserve(cluster << self._bits, 1 << self._bits)
            self._known.add(cluster)
            self._used(cluster)

    def gone(self, first: int, count: int) -> None:
        """Record that clusters have been discarded."""
        last = first + count
        if count < len(self._known):
            self._known.difference_update(range(first, last))
        else:
            self._known = {each for each in self._known if not first <= each < last}
