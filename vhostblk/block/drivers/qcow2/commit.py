# SPDX-License-Identifier: Apache-2.0
"""Writes of metadata, in an order that leaves a consistent image at any point.

Changed tables stay in memory until a flush, or until they take too much memory. Then:

1. the header is written again if the file's header is unknown (see `header_file`);
2. guest data and refcounts (which have only increased so far) are put on stable storage; the
   refcount table's entries are written after the blocks that they refer to;
3. L2 entries are written; they now refer to clusters that are in use and have their data;
4. L1 entries are written, after the L2 tables that they refer to;
5. clusters without a reference in the file, and without operations in flight, become free: their
   refcounts decrease in memory, and are written with the next step 2.

So a crash can only leak clusters. With lazy refcounts the blocks are not written in step 2. Instead
the image is marked dirty, and is repaired the next time that it is opened. As in QEMU, operations
that change no L2 entries (a snapshot, a longer L1 table) don't mark the image dirty.

A full file system can't stop these writes: each cluster of metadata gets storage before its first
change (see `places`).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from vhostblk.block.drivers.qcow2.layout import Incompatible
from vhostblk.block.drivers.qcow2.ordered import runs
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.refcount_changes import change_refcounts
from vhostblk.block.drivers.qcow2.transfer import run_all, write_array
from vhostblk.errors import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.refcounts import RefBlock
    from vhostblk.block.drivers.qcow2.references import References
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.graph.edge import Edge

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Metadata is written without a flush once freed clusters amount to this many bytes.
FREE_BYTES = 64 << 20
#: Number of entries of the refcount table to write together.
_PAGE = 512


class Freed(NamedTuple):
    """Host clusters that have lost a reference; `discard`: they may be discarded in the file."""

    first: int
    length: int
    discard: bool


class FreedMany(NamedTuple):
    """References to host clusters that are dropped."""

    references: References
    discard: bool


class Commit:
    """Writes the metadata of an image, in order. Callers hold the image's lock."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._freed: list[Freed] = []
        self._freed_many: list[FreedMany] = []
        #: Unreferenced clusters of an external data file, to be discarded.
        self._forgotten: set[int] = set()
        self._freed_clusters = 0
        #: There are writes that must be on stable storage before metadata that refers to them.
        self._unsynced = False

    @property
    def dirty(self) -> bool:
        """Whether memory has changes that must be written to the file."""
        image = self._image
        tables = image.tables
        return bool(
            image.header_file.in_doubt
            or self._freed
            or self._freed_many
            or self._forgotten
            or tables.l1_changes.dirty
            or any(found.dirty for found in tables.slices.values())
            or (not self._lazy and self._refcounts_dirty)
        )

    @property
    def _refcounts_dirty(self) -> bool:
        refcounts = self._image.refcounts
        return bool(
            refcounts.dirty_entries or any(block.dirty for block in refcounts.blocks.values())
        )

    @property
    def _lazy(self) -> bool:
        return self._image.settings.lazy_refcounts

    @property
    def unsynced(self) -> bool:
        """Whether there may be writes that are not on stable storage yet."""
        return self._unsynced

    def wrote(self) -> None:
        """Record a write of data or metadata that later writes will refer to."""
        self._unsynced = True

    def free(self, first: int, count: int = 1, *, discard: bool = False) -> None:
        """Drop one reference to each of these clusters, once the file no longer has it."""
        self._freed_clusters += count
        if self._freed:
            last = self._freed[-1]
            if last.first + last.length == first and last.discard == discard:
                self._freed[-1] = last._replace(length=last.length + count)
                return
        self._freed.append(Freed(first, count, discard))

    def free_many(self, references: References, *, discard: bool = False) -> None:
        """Drop references, once the file no longer has them."""
        self._freed_clusters += references.total
        self._freed_many.append(FreedMany(references, discard))

    def forget(self, cluster: int) -> None:
        """Discard a cluster of the external data file, once no entry in the file refers to it.

        Its offset is the guest's offset, so it may be written again before that: see `keep`.
        """
        self._forgotten.add(cluster)

    def keep(self, cluster: int) -> None:
        """Undo `forget`: the cluster has data again."""
        self._forgotten.discard(cluster)

    @property
    def pressing(self) -> bool:
        """Whether there is so much to write that it should be written without a flush."""
        image = self._image
        tables = image.tables
        return (
            self._freed_clusters << image.geometry.cluster_bits > FREE_BYTES
            or len(tables.slices) > tables.limit
            or len(image.refcounts.blocks) > image.refcounts.limit
        )

    async def write(self) -> None:
        """Write all metadata, in the order described above."""
        image = self._image
        image.check_usable()
        await image.header_file.confirm()
        # Lazy refcounts save nothing if there are no L2 entries to write.
        lazy = self._lazy and any(found.dirty for found in image.tables.slices.values())
        if lazy and self._refcounts_dirty:
            await image.header_file.set_dirty(True)  # before the file's refcounts are wrong
        if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
            await self.write_refcounts()
        await self._write_tables()
        if self._freed or self._freed_many or self._forgotten:
            await self._release()

    async def write_all(self) -> None:
        """Also write deferred metadata, so that nothing is left. The image is then clean."""
        image = self._image
        while self.dirty or self._refcounts_dirty:
            await self.write()
            await self.write_refcounts()
        if image.header.incompatible & Incompatible.DIRTY:
            await image.file.flush()
            await image.header_file.set_dirty(False)

    async def close(self) -> None:
        """Write all metadata, and trim the file."""
        try:
            await self.write_all()
        finally:
            await self._image.allocator.trim()

    async def write_refcounts(self) -> None:
        """Write changed refcounts, and then the refcount table's entries; raises OSError."""
        image = self._image
        refcounts = image.refcounts
        dirty = refcounts.dirty_blocks()
        if dirty:
            self._unsynced = True
            await run_all([self._write_block(block) for block in dirty])
        if refcounts.dirty_entries:
            await image.file.flush()
            for low, high in _pages(refcounts.dirty_entries):
                place = image.header.reftable_offset + 8 * low
                await write_array(image.file, place, refcounts.table[low:high].astype(">u8"))
            refcounts.dirty_entries.clear()
            self._unsynced = True

    async def _write_block(self, block: RefBlock) -> None:
        offset, raw = self._image.refcounts.encode(block)
        await write_array(self._image.file, offset, raw)
        block.clean()

    async def sync(self) -> None:
        """Flush data and metadata written so far to stable storage."""
        self._unsynced = False  # what is written from now on is not covered
        try:
            await self.flush_files()
        except BaseException:
            self._unsynced = True
            raise

    async def flush_files(self) -> None:
        """Flush the children. For callers without the lock: the effect of `wrote` remains."""
        image = self._image
        if image.data is not image.file:
            await image.data.flush()
        await image.file.flush()

    async def _write_tables(self) -> None:
        image = self._image
        tables = image.tables
        dirty = tables.dirty_slices()
        if dirty:
            if self._unsynced:
                await self.sync()
            self._unsynced = True
            await run_all([self._write_slice(found) for found in dirty])
        if tables.l1_changes.dirty:
            if self._unsynced:
                await self.sync()
            low, high = tables.l1_changes.low, tables.l1_changes.high
            raw = tables.l1[low:high].astype(">u8")
            await write_array(image.file, image.header.l1_offset + 8 * low, raw)
            tables.l1_changes.clean()
            self._unsynced = True

    async def _write_slice(self, found: L2Slice) -> None:
        per_entry = self._image.tables.words_per_entry
        # Whole sectors, which devices write atomically.
        low = found.low * per_entry // 64 * 64
        high = -(-found.high * per_entry // 64) * 64
        words = found.words[low:high].copy()
        before = (found.low, found.high)
        self._image.publisher.volatile.note(found.number, *before)
        found.clean()
        found.pins += 1  # until then the file has something older
        try:
            await write_array(self._image.file, found.host + 8 * low, words)
        except BaseException:
            found.touch(*before)
            raise
        finally:
            found.pins -= 1

    async def _release(self) -> None:
        """Free clusters that the file no longer refers to."""
        image = self._image
        if self._unsynced:
            await self.sync()
        await image.publisher.settle()
        image.reader.forget_compressed()
        forgotten, self._forgotten = self._forgotten, set()
        for first, count in runs(np.array(sorted(forgotten), np.int64)):
            await self._discard(image.data, first, count)
        self._freed_clusters = 0
        self._freed = [
            Freed(*part, run.discard)
            for run in self._freed
            for part in image.refcounts.by_block(run.first, run.length)
        ]
        while self._freed:
            part = self._freed[-1]
            change = image.refcounts.change(part.first, part.length, -1)
            free = await self._drop(change)
            self._freed.pop()
            if free is not None:
                await self._forget_free(free, discard=part.discard)
        while self._freed_many:
            references, discard = self._freed_many[-1]
            pace = Pace(image, "freeing clusters")
            free_many = await self._drop(change_refcounts(image, references, -1, pace))
            self._freed_many.pop()
            for free in free_many or ():
                await self._forget_free(free, discard=discard)
                await pace.turn()

    async def _drop(self, change: Awaitable[T]) -> T | None:
        """Drop refcounts; return the clusters that became free. On an error clusters are leaked."""
        try:
            return await change
        except OSError as error:
            self._image.check_usable()
            text = "%s: clusters are leaked: %s"
            logger.warning(text, self._image.file.node.filename, reason(error))
            return None

    async def _forget_free(self, clusters: NDArray[np.int64], *, discard: bool) -> None:
        if not len(clusters):
            return
        self._image.overlap.check_freed(clusters)
        self._image.allocator.released(clusters)
        for first, count in runs(clusters) if discard else ():
            await self.discard(first, count)

    async def discard(self, first: int, count: int) -> None:
        """Discard free clusters in the file."""
        self._image.places.gone(first, count)
        await self._discard(self._image.file, first, count)

    async def _discard(self, edge: Edge, first: int, count: int) -> None:
        """Discard clusters of a file. Errors are ignored: discarding is only a hint."""
        bits = self._image.geometry.cluster_bits
        with suppress(OSError):
            await edge.pdiscard(first << bits, count << bits)

    async def move_reftable(
        self, table: NDArray[np.uint64], offset: int, blocks: list[RefBlock]
    ) -> None:
        """Write and use another refcount table; the new `blocks` count its clusters."""
        await self.write_reftable(table, offset, blocks)
        await self.use_reftable(table, offset, blocks)

    async def write_reftable(
        self, table: NDArray[np.uint64], offset: int, blocks: list[RefBlock]
    ) -> None:
        """Write another refcount table and the blocks that count its clusters, without using it."""
        image = self._image
        await image.header_file.confirm()
        for block in blocks:
            place, raw = image.refcounts.encode(block)
            await write_array(image.file, place, raw)
            block.clean()
        await self.write_refcounts()
        await write_array(image.file, offset, table.astype(">u8"))
        await image.file.flush()

    async def use_reftable(
        self, table: NDArray[np.uint64], offset: int, blocks: list[RefBlock]
    ) -> None:
        """Use the refcount table that was written, with one write of the header; raises OSError.

        It is in use even after an OSError, as another table would need even more space.
        """
        image = self._image
        header, refcounts, bits = image.header, image.refcounts, image.geometry.cluster_bits
        old, old_clusters = header.reftable_offset >> bits, header.reftable_clusters
        refcounts.take_table(table)
        for block in blocks:
            refcounts.add(block)
        image.overlap.metadata_removed(old, old_clusters)
        self.free(old, old_clusters)
        clusters = len(table) * 8 >> bits
        await image.header_file.go_over(reftable_offset=offset, reftable_clusters=clusters)


def _pages(entries: set[int]) -> list[tuple[int, int]]:
    """Return ranges [low, high) of table pages that contain these entries."""
    pages: dict[int, tuple[int, int]] = {}
    for entry in sorted(entries):
        low, _ = pages.get(entry // _PAGE, (entry, entry))
        pages[entry // _PAGE] = (low, entry + 1)
    return list(pages.values())
