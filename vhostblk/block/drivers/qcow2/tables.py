# SPDX-License-Identifier: Apache-2.0
"""The L1 table and cached slices of L2 tables.

The whole L1 table is in memory. L2 tables are cached in slices, in the form of the file (`>u8`),
with the range of changed entries. Dirty and pinned slices stay; others are evicted when the cache
is full. Slices are numbered across the whole disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.drivers.qcow2.dirty import DirtyRange
from vhostblk.block.drivers.qcow2.kept import Tables
from vhostblk.block.drivers.qcow2.layout import COPIED, OFFSET_MASK
from vhostblk.block.drivers.qcow2.transfer import read_array
from vhostblk.block.io.completion import Completion

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.layout import Geometry
    from vhostblk.block.drivers.qcow2.pace import Pace
    from vhostblk.block.graph.edge import Edge


class L2Slice(DirtyRange):
    """Entries of an L2 table."""

    __slots__ = ("host", "number", "pins", "placed", "used", "words")

    def __init__(self, number: int, host: int, words: NDArray[Any]) -> None:
        super().__init__()
        self.number = number
        #: Offset in the file.
        self.host = host
        self.words = words
        self.pins = 0
        #: The slice has storage in the file (see `places`), so it may be changed.
        self.placed = False
        self.used = True


class L2Cache:
    """Slices by number. `on_load` and `on_evict` are called for each loaded or evicted slice."""

    def __init__(
        self, edge: Edge, geometry: Geometry, l1: NDArray[np.uint64], slice_size: int, limit: int
    ) -> None:
        self._edge = edge
        self._geometry = geometry
        #: The L1 table, in native byte order, and its range of changed entries.
        self.l1 = l1
        self.l1_changes = DirtyRange()
        self.configure(slice_size, limit)
        self.slices: Tables[L2Slice] = Tables()
        self._loading: dict[int, list[Completion[None]]] = {}
        self.on_load: Callable[[L2Slice], object] = _ignore
        self.on_evict: Callable[[L2Slice], object] = _ignore

    def configure(self, slice_size: int, limit: int) -> None:
        """Set the slices' length in bytes, and the number of slices to keep; the cache is empty."""
        geometry = self._geometry
        self.slice_size = slice_size
        self.limit = limit
        #: Binary logarithms of the entries of a slice, and of the guest bytes that it maps.
        self.slice_bits = (slice_size >> geometry.entry_bits).bit_length() - 1
        self.span_bits = self.slice_bits + geometry.cluster_bits
        self._per_table_bits = geometry.l2_bits - self.slice_bits
        #: The number of a guest cluster's entry in its slice is `cluster & entry_mask`.
        self.entry_mask = (1 << self.slice_bits) - 1
        self.words_per_entry = 2 if geometry.extended_l2 else 1

    # The mapping from guest clusters to entries and tables. All such arithmetic is here, except for
    # bursts of writes, which do it for many clusters at once.

    def slice_of(self, offset: int) -> int:
        """Return the number of the slice that maps a guest offset."""
        return offset >> self.span_bits

    def first_cluster(self, number: int) -> int:
        """Return the first guest cluster of a slice."""
        return number << self.slice_bits

    def slice_end(self, offset: int) -> int:
        """Return the guest offset of the end of the slice that maps `offset`."""
        return ((offset >> self.span_bits) + 1) << self.span_bits

    def table_end(self, offset: int) -> int:
        """Return the guest offset of the end of the L2 table that maps `offset`."""
        bits = self.span_bits + self._per_table_bits
        return ((offset >> bits) + 1) << bits

    def l1_index(self, number: int) -> int:
        """Return the index of the L1 entry for a slice's table."""
        return number >> self._per_table_bits

    def slices_of(self, index: int) -> range:
        """Return the numbers of the slices of an L1 entry's table."""
        return range(index << self._per_table_bits, (index + 1) << self._per_table_bits)

    def table_of(self, number: int) -> int:
        """Return the offset of the L2 table of a slice; 0: there is none."""
        index = self.l1_index(number)
        return int(self.l1[index]) & OFFSET_MASK if index < len(self.l1) else 0

    async def load(self, number: int) -> L2Slice | None:
        """Return a slice; None: there is no L2 table. The L1 entry has been checked."""
        while True:
            found = self.slices.get(number)
            if found is not None:
                found.used = True
                return found
            if number not in self._loading:
                break
            ready: Completion[None] = Completion()
            self._loading[number].append(ready)
            await ready
        table = self.table_of(number)
        if not table:
            return None
        waiting = self._loading[number] = []
        try:
            host = table + self._place(number)
            words = await read_array(self._edge, host, self.slice_size // 8, ">u8")
            loaded = L2Slice(number, host, words)
            self.insert(loaded)
        finally:
            del self._loading[number]
            for ready in waiting:
                ready.set_result(None)
        return loaded

    def _place(self, number: int) -> int:
        return (number & ((1 << self._per_table_bits) - 1)) * self.slice_size

    def insert(self, loaded: L2Slice) -> None:
        """Add a slice to the cache, and evict others if necessary."""
        self.slices[loaded.number] = loaded
        self.on_load(loaded)
        for old in self.slices.excess(self.limit, loaded):
            self.evict(old)

    def evict(self, old: L2Slice) -> None:
        """Drop a slice."""
        del self.slices[old.number]
        self.on_evict(old)

    def clear(self) -> None:
        """Drop all slices, none of which is dirty."""
        for old in list(self.slices.values()):
            self.evict(old)

    async def drop(self, pace: Pace) -> None:
        """Drop all slices, none of which is dirty, in turns."""
        while self.slices:
            self.evict(next(iter(self.slices.values())))
            await pace.turn(0)

    def clean_unused(self) -> None:
        """Drop slices that were not used since the last call."""
        for old in list(self.slices.values()):
            if old.dirty or old.pins:
                continue
            if old.used:
                old.used = False
            else:
                self.evict(old)

    def set_l1(self, index: int, value: int) -> None:
        """Change an L1 entry."""
        self.l1[index] = value
        self.l1_changes.touch(index, index + 1)

    def share_all(self) -> None:
        """Clear the "copied" bits of all L1 entries: a snapshot refers to the tables, too."""
        self.l1 &= ~np.uint64(COPIED)
        self.l1_changes.touch(0, len(self.l1))

    def take_l1(self, table: NDArray[np.uint64]) -> None:
        """Use another L1 table, which is already in the file."""
        self.l1 = table

    def move_table(self, index: int, host: int) -> None:
        """Move the cached slices of an L1 entry's table to another place in the file.

        All their entries become dirty.
        """
        for number in self.slices_of(index):
            found = self.slices.get(number)
            if found is not None:
                found.host = host + self._place(number)
                found.touch(0, 1 << self.slice_bits)

    def dirty_slices(self) -> list[L2Slice]:
        """Return the dirty slices, in the order of the file."""
        dirty = [each for each in self.slices.values() if each.dirty]
        return sorted(dirty, key=lambda each: each.host)


def _ignore(_slice: L2Slice) -> None:
    pass
