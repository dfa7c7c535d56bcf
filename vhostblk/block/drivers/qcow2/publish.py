# SPDX-License-Identifier: Apache-2.0
"""The extent map: L2 slices in the form that the engine reads.

The driver's own fast path uses the same table, so the meaning of L2 entries is computed once, for a
whole slice. An entry is published when its slice is loaded, or when the write that allocated it has
completed. It is revoked when the slice is evicted or the meaning changes. Revoking never waits.
`settle` waits, before the host cluster is reused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, VOLATILE
from vhostblk.block.drivers.qcow2.mapping import OVERWRITE, READ, map_entries
from vhostblk.block.drivers.qcow2.referred import Referred
from vhostblk.block.drivers.qcow2.volatile import Volatile
from vhostblk.block.io.completion import Completion
from vhostblk.engine.extents import ExtentKind, ExtentMap, ExtentTable, Treatment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice

#: The maximum length of the table; larger disks have none. Only touched pages use memory.
_MAX_ENTRIES = 1 << 30
#: The limit of memory for entries, in addition to the two slices that a cache has at least.
TABLE_BYTES = 256 << 20
_PAGE = 4096
#: Number of entries to search before other tasks get a turn.
_TURN = 1 << 16
_ALL = slice(None)
#: An empty entry; broadcasts to any number of entries.
_NOTHING = np.zeros(1, np.uint64)


class Publisher:
    """Keeps the table consistent with the cached slices."""

    def __init__(self, image: Image) -> None:
        self._image = image
        geometry = image.geometry
        self.unit_bits = geometry.subcluster_bits
        count = -(-image.size >> geometry.subcluster_bits)
        self._table: ExtentTable | None = None
        #: The entries whose metadata is not on stable storage.
        self.volatile = Volatile(self)
        #: Whether entries are counted. With an external data file, no entry can refer to metadata.
        self._counted = not geometry.external_data
        # The file may grow by the whole size of the disk.
        longest = geometry.clusters(image.file.node.size + image.size) if self._counted else 0
        self._referred = Referred(geometry.cluster_bits, longest)
        #: The number of times that entries were revoked because their clusters became metadata.
        self.taken_back = 0
        #: Operations of the Python lane in flight, by phase.
        self._busy = [0, 0]
        self.phase = 0
        self._settled: Completion[None] | None = None
        #: The entries, shape (subclusters of the disk,).
        self.entries: NDArray[np.uint64] = np.zeros(0, np.uint64)
        if 0 < count <= _MAX_ENTRIES:
            try:
                self._table = ExtentTable(geometry.subcluster_bits, count)
            except (OSError, MemoryError, ValueError):
                return  # no address space: every request is looked up
            self.entries = np.frombuffer(self._table.memory, np.uint64)

    def slice_limit(self, slices: int) -> int:
        """Return the number of slices that may be kept, at most the number that the user wants."""
        return max(min(slices, TABLE_BYTES // max(self._slice_bytes, _PAGE)), 2)

    # Entries.

    @property
    def slice_clusters(self) -> int:
        """The number of clusters in a slice."""
        return self._image.tables.entry_mask + 1

    def run(self, number: int, low: int, high: int) -> NDArray[np.uint64]:
        """Return the entries of clusters [low, high) of a slice, as a view to change in place."""
        image = self._image
        first = image.tables.first_cluster(number) + low
        shift = image.geometry.cluster_bits - self.unit_bits
        return self.entries[first << shift : (first + high - low) << shift]

    def load(self, found: L2Slice) -> None:
        """Publish a slice that has been loaded."""
        mapped = self._map(found, 0, self.slice_clusters)
        self.volatile.mark_loaded(found.number, mapped)
        self._publish(found, 0, mapped)

    def update(self, found: L2Slice, low: int, high: int) -> None:
        """Publish entries [low, high) of a slice, which have changed."""
        mapped = self._map(found, low, high)
        self.volatile.mark(mapped)
        self._publish(found, low, mapped)

    def _publish(self, found: L2Slice, low: int, mapped: NDArray[np.uint64]) -> None:
        run = self.run(found.number, low, self.slice_clusters)[: len(mapped)]
        self._put(run, _ALL, mapped[: len(run)])

    def _put(
        self, run: NDArray[np.uint64], places: slice | NDArray[Any], new: NDArray[np.uint64]
    ) -> None:
        """Replace the entries at `places` of a part of the table."""
        if self._counted:
            self._referred.replaced(run[places], new)
        run[places] = new

    def _map(self, found: L2Slice, low: int, high: int) -> NDArray[np.uint64]:
        """Return what to publish for entries [low, high) of a slice."""
        image = self._image
        if not len(self.entries) or image.unusable:
            return np.zeros(0, np.uint64)
        tables, geometry = image.tables, image.geometry
        first_cluster = tables.first_cluster(found.number) + low
        per_entry = tables.words_per_entry
        return map_entries(
            geometry,
            found.words[low * per_entry : high * per_entry],
            first_cluster,
            base=0,
            limit=image.data_limit,
            has_backing=image.backing is not None,
            forbidden=image.overlap.offsets(),
        )

    def changed(self, found: L2Slice, index: int, cluster: int, word: int) -> None:
        """Publish a cluster that has been written, at a valid offset."""
        if self._image.geometry.extended_l2:
            self.update(found, index, index + 1)
        elif cluster < len(self.entries) and not self._image.unusable:
            self._put_written(cluster, word & OFFSET_MASK)

    def _put_written(self, cluster: int, host: int) -> None:
        entry = host | READ | OVERWRITE | self.volatile.bit
        if self._counted:
            self._referred.replaced_one(int(self.entries[cluster]), entry)
        self.entries[cluster] = entry

    def written(self, hosts: dict[int, int]) -> None:
        """Publish clusters that have been written, by number; not for extended L2 entries."""
        if not len(self.entries) or self._image.unusable:
            return
        count = len(hosts)
        if count == 1:  # ten times as fast without arrays
            ((cluster, host),) = hosts.items()
            self._put_written(cluster, host)
            return
        numbers = np.fromiter(hosts.keys(), np.uint64, count)
        flags = np.uint64(READ | OVERWRITE | self.volatile.bit)
        words = np.fromiter(hosts.values(), np.uint64, count) | flags
        self._put(self.entries, numbers, words)

    def revoke(self, found: L2Slice, low: int, high: int) -> None:
        """Revoke entries [low, high) of a slice."""
        self._put(self.run(found.number, low, high), _ALL, _NOTHING)

    def restore(self, found: L2Slice, low: int, high: int) -> None:
        """Undo `revoke`, even if entries of the slice have changed since."""
        self.update(found, low, high)
        self.volatile.note(found.number, low, high)  # the next flush covers them

    async def take_back(self, first: int, count: int) -> bool:
        """Revoke the entries whose host clusters become metadata; return whether there were any.

        The caller holds the image's lock, and has recorded the clusters as metadata, so no entry
        for them is published meanwhile.
        """
        if not self._counted or not self._referred.may_refer(first, count):
            return False
        found, done = False, 0
        for number in list(self._image.tables.slices):
            run = self.run(number, 0, self.slice_clusters)
            places = self._referred.find(first, count, run)
            if len(places):
                self._put(run, places, _NOTHING)
                found = True
            done += len(run)
            if done >= _TURN:
                done = 0
                await asyncio.sleep(0)
        self.taken_back += found
        return found

    def evict(self, found: L2Slice) -> None:
        """Revoke a slice, and release memory that no other slice uses."""
        slices, number = self._image.tables.slices, found.number
        self.revoke(found, 0, self.slice_clusters)
        self.volatile.evicted(number)
        if self._table is None:
            return
        span = self._slice_bytes
        together = max(_PAGE // span, 1)  # slices that share a page
        first = number // together * together
        if together > 1 and any(each in slices for each in range(first, first + together)):
            return
        memory, start = self._table.memory, first * span
        if start < len(memory):
            import mmap

            length = min(max(span, _PAGE), len(memory) - start)
            memory.madvise(mmap.MADV_DONTNEED, start, length)

    @property
    def _slice_bytes(self) -> int:
        """The size of a slice's entries in bytes."""
        return 8 << self._image.tables.span_bits >> self.unit_bits

    def revoke_all(self) -> None:
        """Revoke all entries."""
        for found in self._image.tables.slices.values():
            self.revoke(found, 0, self.slice_clusters)

    def overwritable(self, offset: int, length: int) -> int:
        """Return a range's offset in the data file if it may be overwritten directly; else -1."""
        bits, entries = self.unit_bits, self.entries
        first, last = offset >> bits, (offset + length - 1) >> bits
        if not self._image.writable or last >= len(entries):
            return -1
        entry = int(entries[first]) & ~VOLATILE
        if not entry & OVERWRITE:
            return -1
        if last > first:
            run = entries[first : last + 1] & ~np.uint64(VOLATILE)
            expected = np.uint64(entry) + (
                np.arange(last - first + 1, dtype=np.uint64) << np.uint64(bits)
            )
            if not (run == expected).all():
                return -1
        return (entry & ~511) + (offset & ((1 << bits) - 1))

    def any_overwritable(self, offsets: list[int]) -> bool:
        """Return whether any of the bytes at these offsets may be overwritten directly."""
        if not len(self.entries):
            return False
        found = self.entries[np.array(offsets, np.uint64) >> np.uint64(self.unit_bits)]
        return bool((found & np.uint64(OVERWRITE)).any())

    # Operations in flight.

    def begin(self) -> int:
        """Count an operation that uses the table; return the argument for `end`."""
        phase = self.phase
        self._busy[phase] += 1
        return phase

    def end(self, phase: int) -> None:
        """Count the end of an operation."""
        self._busy[phase] -= 1
        if self._settled is not None and phase != self.phase and not self._busy[phase]:
            settled, self._settled = self._settled, None
            settled.set_result(None)

    async def settle(self) -> None:
        """Wait until the operations in flight that use the table have ended, in both lanes.

        Called by one coroutine at a time, which is not in flight itself.
        """
        former = self.phase
        self.phase = 1 - former
        if self._busy[former]:
            self._settled = Completion()
            await self._settled
        if self._table is not None:
            await self._table.settle()

    # The map.

    def extent_map(self) -> ExtentMap | None:
        """Return the map, if the engine can use the data file."""
        image = self._image
        below = image.guest_data.extent_map()
        if self._table is None or below is None or below.kind is not ExtentKind.LINEAR:
            return None
        if below.offset:
            return None
        return ExtentMap(
            ExtentKind.TABLE,
            image.size,
            fd=below.fd,
            alignment=below.alignment,
            writable=below.writable and image.writable,
            buffered=below.buffered,
            flush=Treatment.ASK,
            discard=Treatment.ASK,
            table=self._table,
            sync=below.sync,
            budget=below.budget,
        )
