# SPDX-License-Identifier: Apache-2.0
"""Volatile entries of the extent map: a crash may lose their metadata.

A cluster that has just been allocated is in the map at once, but its L2 entry is on stable storage
only after a flush. A write that must be durable when it completes (write cache off, FUA) must not
overwrite such a cluster directly: after a crash, no L2 entry might refer to it. So the entry in the
map has a volatile bit. The engine then leaves these writes to the driver, which flushes after them.

An entry gets the bit when its L2 entry changes. It loses the bit when a flush succeeds that began
after the L2 entry was written. There are two such bits, used alternately: a flush clears one, and
entries that change during the flush get the other.

Content read from the file need not be on stable storage either: another process may have written
it, or we wrote it before the slice was evicted from the cache. All entries of such a slice are
volatile.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OVERWRITE, VOLATILE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.publish import Publisher

#: After this many entries are cleared, the event loop gets a turn.
_TURN = 1 << 20

#: A range of entries for each slice, by the slice's number.
_Ranges = dict[int, tuple[int, int]]


class Volatile:
    """The volatile bits of a publisher's entries. Ranges are in clusters of a slice."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        #: The bit that changed entries get, and the bit of entries that the running flush covers.
        self.bit, self._other = VOLATILE_BITS
        #: The ranges of entries with each bit; all of these slices are in the cache.
        self._marked: _Ranges = {}
        self._covered: _Ranges = {}
        #: The file has changes in unknown places that no flush covers yet.
        self._unknown = True
        #: The file has changes in unknown places that the running flush covers.
        self._unknown_covered = False

    def mark(self, entries: NDArray[np.uint64]) -> None:
        """Set the bit in all entries that allow writes, before they are published."""
        step = np.uint64(self.bit // OVERWRITE)
        entries |= (entries & np.uint64(OVERWRITE)) * step

    def mark_loaded(self, number: int, entries: NDArray[np.uint64]) -> None:
        """Set the bit in all entries of a loaded slice, if the file may not be durable."""
        if self._unknown or self._unknown_covered:
            self.mark(entries)
            self.note(number, 0, self._publisher.slice_clusters)

    def note(self, number: int, low: int, high: int) -> None:
        """Record that changed entries [low, high) of a slice are about to be written."""
        before = self._marked.get(number)
        if before is not None:
            low, high = min(low, before[0]), max(high, before[1])
        self._marked[number] = (low, high)

    def evicted(self, number: int) -> None:
        """Forget a slice. Its changes have been written, but may not be on stable storage."""
        if self._marked.pop(number, None) is not None:
            self._unknown = True
        if self._covered.pop(number, None) is not None:
            self._unknown_covered = True

    # Flushes: one at a time.

    def begin(self) -> None:
        """Begin a flush. All changes have been written, and nothing changes during the call."""
        self._covered, self._marked = self._marked, {}
        self._unknown_covered, self._unknown = self._unknown, False
        self.bit, self._other = self._other, self.bit

    async def succeeded(self) -> None:
        """End a flush: clear the bit of all entries that it covers."""
        self._unknown_covered = False
        done, keep = 0, ~np.uint64(self._other)
        while self._covered:
            number, (low, high) = self._covered.popitem()
            run = self._publisher.run(number, low, high)
            run &= keep
            done += len(run)
            if done >= _TURN:
                done = 0
                await asyncio.sleep(0)

    def failed(self) -> None:
        """End a flush that failed: the entries that it covers stay volatile."""
        former, bit = np.uint64(self._other), np.uint64(self.bit)
        for number, (low, high) in self._covered.items():
            run = self._publisher.run(number, low, high)
            run[:] = np.where(run & former, run & ~former | bit, run)
            self.note(number, low, high)
        self._covered = {}
        self._unknown |= self._unknown_covered
        self._unknown_covered = False
