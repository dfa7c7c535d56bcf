# SPDX-License-Identifier: Apache-2.0
"""Reference counts of host clusters (section "Host cluster management").

In memory, a refcount block is an array with one number for each cluster, whatever the width in the
file. `commit` writes dirty blocks, and decreases a count only once nothing in the file refers to
the cluster any more. So counts in the file are never too low, except with lazy refcounts.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.drivers.qcow2.dirty import DirtyRange
from vhostblk.block.drivers.qcow2.kept import Tables
from vhostblk.block.drivers.qcow2.layout import REFTABLE_OFFSET_MASK, in_hex
from vhostblk.block.drivers.qcow2.transfer import read_array
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.layout import Geometry
    from vhostblk.block.graph.edge import Edge


def unpack(raw: NDArray[np.uint8], order: int) -> NDArray[Any]:
    """Convert the bytes of a refcount block to numbers of 2**order bits, at least 8 in memory."""
    if order >= 3:
        stored = np.dtype(f">u{1 << order - 3}")
        return raw.view(stored).astype(stored.newbyteorder("="))
    # Parts of a byte: the first one is in the low bits.
    width = 1 << order
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    parts: NDArray[Any] = (raw[:, None] >> shifts[None, :]) & np.uint8((1 << width) - 1)
    return parts.reshape(-1)


def pack(values: NDArray[Any], order: int) -> NDArray[np.uint8]:
    """Undo `unpack`."""
    if order >= 3:
        return values.astype(f">u{1 << order - 3}").view(np.uint8)
    width = 1 << order
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    parts = values.astype(np.uint8).reshape(-1, 8 // width) << shifts[None, :]
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=1)
    return packed


class RefBlock(DirtyRange):
    """The counts of consecutive clusters."""

    __slots__ = ("host", "index", "pins", "used", "values")

    def __init__(self, index: int, host: int, values: NDArray[Any]) -> None:
        super().__init__()
        self.index = index
        self.host = host
        self.values = values
        self.pins = 0
        self.used = True


class Refcounts:
    """The refcount table and cached blocks; used by one coroutine at a time."""

    def __init__(
        self, edge: Edge, geometry: Geometry, table: NDArray[np.uint64], limit: int
    ) -> None:
        self._edge = edge
        self._geometry = geometry
        #: In native byte order; entries in `dirty_entries` have changed.
        self.table = table
        self.dirty_entries: set[int] = set()
        self.blocks: Tables[RefBlock] = Tables()
        #: The number of blocks to keep.
        self.limit = limit
        #: Called with a message if the image is corrupt; may raise OSError.
        self.corrupt: Callable[[str], None] = _corrupt
        #: Called with the offset of a block before it is changed. Raises OSError if the block gets
        #: no storage or overlaps other metadata.
        self.check_place: Callable[[int], Awaitable[None]] = _nothing

    def take_table(self, table: NDArray[np.uint64]) -> None:
        """Use another table, which is already in the file."""
        self.table = table
        self.dirty_entries.clear()

    def block_offset(self, index: int) -> int:
        """Return the offset of a block; 0: there is no block. Raises OSError if it is invalid."""
        if index >= len(self.table):
            return 0
        offset = int(self.table[index]) & REFTABLE_OFFSET_MASK
        if offset & (self._geometry.cluster_size - 1):
            self.corrupt(f"Refblock offset {offset:#x} unaligned (reftable index: {in_hex(index)})")
            raise os_error(errno.EIO)
        return offset

    async def block(self, index: int) -> RefBlock | None:
        """Return a block; None: there is none, and all its clusters are free."""
        found = self.blocks.get(index)
        if found is not None:
            found.used = True
            return found
        offset = self.block_offset(index)
        if not offset:
            return None
        raw = await read_array(self._edge, offset, self._geometry.cluster_size, np.uint8)
        block = RefBlock(index, offset, unpack(raw, self._geometry.refcount_order))
        self.add(block)
        return block

    def add(self, block: RefBlock) -> None:
        """Add a block to the cache, and evict others if necessary."""
        self.blocks[block.index] = block
        for old in self.blocks.excess(self.limit, block):
            del self.blocks[old.index]

    async def get(self, cluster: int) -> int:
        """Return the count of a cluster."""
        bits = self._geometry.refblock_bits
        block = await self.block(cluster >> bits)
        return 0 if block is None else int(block.values[cluster & ((1 << bits) - 1)])

    async def change(self, first: int, count: int, by: int) -> NDArray[np.int64]:
        """Add +1 or -1 to the counts of consecutive clusters; return those that became free.

        Raises OSError if a count can't be changed; the counts in earlier blocks have changed then.
        """
        geometry, freed = self._geometry, [np.zeros(0, np.int64)]
        mask = (1 << geometry.refblock_bits) - 1
        spans = list(self.by_block(first, count))
        for cluster, _ in spans if len(spans) > 1 else ():
            await self._changeable(cluster)  # all of them, before one has changed
        for cluster, length in spans:
            block = await self._changeable(cluster)
            low = cluster & mask
            high = low + length
            part = block.values[low:high]
            if by > 0:
                if (part == geometry.refcount_max).any():
                    raise os_error(errno.ERANGE)
                part += part.dtype.type(1)
            else:
                if (part == 0).any():
                    self.corrupt(f"Cluster {cluster:#x} is in use and has refcount 0")
                    raise os_error(errno.EIO)
                part -= part.dtype.type(1)
                freed.append(np.flatnonzero(part == 0) + cluster)
            block.touch(low, high)
        return np.concatenate(freed)

    def by_block(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Split consecutive clusters by refcount block; yield (first, count)."""
        bits, stop = self._geometry.refblock_bits, first + count
        while first < stop:
            end = min(((first >> bits) + 1) << bits, stop)
            yield first, end - first
            first = end

    async def _changeable(self, cluster: int) -> RefBlock:
        """Return the block with a cluster's count, ready to be changed; raises OSError."""
        block = await self.block(cluster >> self._geometry.refblock_bits)
        if block is None:
            self.corrupt(f"Cluster {cluster:#x} is in use and has no refcount")
            raise os_error(errno.EIO)
        await self.check_place(block.host)
        return block

    def dirty_blocks(self) -> list[RefBlock]:
        """Return the dirty blocks, in the order of the file."""
        dirty = [block for block in self.blocks.values() if block.dirty]
        return sorted(dirty, key=lambda block: block.host)

    def encode(self, block: RefBlock) -> tuple[int, NDArray[np.uint8]]:
        """Return offset and bytes of the changes in a block, in whole sectors."""
        order = self._geometry.refcount_order
        per_sector = 4096 >> order
        low = block.low // per_sector * per_sector
        high = -(-block.high // per_sector) * per_sector
        return block.host + (low << order >> 3), pack(block.values[low:high], order)


def _corrupt(_text: str) -> None:
    raise os_error(errno.EIO)


async def _nothing(_offset: int) -> None:
    pass
