# SPDX-License-Identifier: Apache-2.0
"""`Image`: an open image, with all parts of the driver.

Reads and writes to allocated clusters run concurrently, by the published table. An operation that
changes metadata (allocation, zeroes, discards, writing tables back) holds `lock`, so it sees and
leaves a consistent state. A freed host cluster waits in `commit` until the file no longer refers to
it and no operation uses it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.ahead import Streams
from vhostblk.block.drivers.qcow2.allocator import Allocator
from vhostblk.block.drivers.qcow2.bitmap_store import BitmapStore
from vhostblk.block.drivers.qcow2.commit import Commit
from vhostblk.block.drivers.qcow2.flush import Flusher
from vhostblk.block.drivers.qcow2.guest_data import GuestData
from vhostblk.block.drivers.qcow2.header_file import HeaderFile
from vhostblk.block.drivers.qcow2.layout import COPIED, OFFSET_MASK, Autoclear, Incompatible
from vhostblk.block.drivers.qcow2.opening import UNREADABLE
from vhostblk.block.drivers.qcow2.overlap import Overlap
from vhostblk.block.drivers.qcow2.places import Places
from vhostblk.block.drivers.qcow2.publish import Publisher
from vhostblk.block.drivers.qcow2.read import Reader
from vhostblk.block.drivers.qcow2.refcounts import Refcounts
from vhostblk.block.drivers.qcow2.snapshots import (
    Incomplete,
    SnapshotTable,
    check_l1,
    parse_table,
)
from vhostblk.block.drivers.qcow2.tables import L2Cache
from vhostblk.block.drivers.qcow2.transfer import Mutex, fill, read_bytes, read_table
from vhostblk.block.drivers.qcow2.write import Writer
from vhostblk.block.drivers.qcow2.zero import Zeroer
from vhostblk.block.errors import BlockError
from vhostblk.errors import errors_as, log_failure, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.drivers.qcow2.mapping import Entry
    from vhostblk.block.drivers.qcow2.opening import TopTables
    from vhostblk.block.drivers.qcow2.options import Settings
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.graph.edge import Edge

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SNAPSHOT_CHUNK = 64 << 10


class Image:
    """An open image. `file` holds the metadata, `data` the guest's data (often the same)."""

    def __init__(
        self, file: Edge, data: Edge, backing: Edge | None, parsed: Header, settings: Settings
    ) -> None:
        self.file = file
        self.data = data
        self.guest_data = GuestData(data)
        self.backing = backing
        self.header = parsed
        self.geometry = parsed.geometry
        self.settings = settings
        self.writable = False
        self.lock = Mutex()
        #: Detects sequential allocations.
        self.streams = Streams(parsed.geometry.cluster_bits)
        self.snapshots = SnapshotTable()
        self.header_file = HeaderFile(self)
        self.bitmaps = BitmapStore(self)
        self.on_corruption: Callable[[str, int, int, bool], object] = _no_listener
        self._signalled = False
        self._marking: set[asyncio.Task[None]] = set()
        #: A snapshot was deleted, so some "copied" bits of the active disk are missing.
        self.untidy = False
        #: Set when metadata turned out to be invalid during a change. All further changes fail.
        self.unusable = False
        self.tables: L2Cache
        self.refcounts: Refcounts
        self.places: Places
        self.overlap: Overlap
        self.publisher: Publisher
        self.reader: Reader
        self.allocator: Allocator
        self.commit: Commit
        self.flusher: Flusher
        self.writer: Writer
        self.zeroer: Zeroer

    @property
    def size(self) -> int:
        """The disk's length in bytes."""
        return self.header.size

    @property
    def data_limit(self) -> int:
        """The limit of offsets of data clusters."""
        if self.geometry.external_data:
            return 1 << 62
        # Writes past the high water mark go to the driver, which records them (`Allocator.used`).
        bits = self.geometry.cluster_bits
        return min(self.file.node.size, self.allocator.high_water << bits)

    @property
    def grows_with_zeroes(self) -> bool:
        """Whether the file reads as zeroes where it is extended."""
        return self.file.node.grows_with_zeroes

    async def load(self) -> None:
        """Read tables and create the parts; raises BlockError."""
        parsed, geometry = self.header, self.geometry
        with errors_as(BlockError, UNREADABLE):
            l1 = await read_table(self.file, parsed.l1_offset, parsed.l1_size)
            entries = parsed.reftable_clusters << geometry.cluster_bits >> 3
            reftable = await read_table(self.file, parsed.reftable_offset, entries)
            self.snapshots = await self._read_snapshots()
            await self.bitmaps.load_directory()
        self._make_parts(l1, reftable)

    def take_tables(self, read: TopTables) -> None:
        """Create the parts from these tables, for an image without snapshots and bitmaps."""
        parsed = self.header
        l1 = np.zeros(parsed.l1_size, np.uint64)
        fill(l1, 0, np.frombuffer(read.l1, ">u8"))
        reftable = np.zeros(
            parsed.reftable_clusters << parsed.geometry.cluster_bits >> 3, np.uint64
        )
        fill(reftable, 0, np.frombuffer(read.refcounts, ">u8"))
        self._make_parts(l1, reftable)

    def _make_parts(self, l1: NDArray[np.uint64], reftable: NDArray[np.uint64]) -> None:
        geometry, settings = self.geometry, self.settings
        self.tables = L2Cache(
            self.file,
            geometry,
            l1,
            settings.l2_slice_size,
            settings.l2_slices,
        )
        self.refcounts = Refcounts(self.file, geometry, reftable, settings.refblocks)
        self.refcounts.corrupt = self.corruption
        self.refcounts.check_place = self._check_block
        self.forget_storage()
        self.overlap = Overlap(self)
        self.overlap.collect()
        self.reader = Reader(self)
        self.allocator = Allocator(self)
        self.commit = Commit(self)
        self.flusher = Flusher(self)
        self.writer = Writer(self)
        self.zeroer = Zeroer(self)
        self.new_publisher()

    def forget_storage(self) -> None:
        """Assume that no metadata has storage, as the file may be another one now."""
        self.places = Places(
            self.file, self.geometry.cluster_bits, lambda cluster: self.allocator.used(cluster)
        )
        for found in self.tables.slices.values():
            found.placed = False

    def allow_writes(self, *, allowed: bool) -> None:
        """Record whether the node may write to the image."""
        self.writable = allowed

    def defer_writes(self) -> None:
        """Let changes of the image fail until `admit_writes`: the image is not prepared yet."""
        self.unusable = True

    def admit_writes(self) -> None:
        """Undo `defer_writes`."""
        self.unusable = False

    def references_dropped(self) -> None:
        """Record that clusters with fewer references may lack their "copied" bit."""
        self.untidy = True

    def tidied_up(self) -> None:
        """Record that all "copied" bits are correct again."""
        self.untidy = False

    def take_backing(self, backing: Edge | None) -> None:
        """Use another backing file, or none; no operation is in flight."""
        self.backing = backing
        self.new_publisher()

    def take_l1(self, table: NDArray[np.uint64]) -> None:
        """Use another L1 table for the disk's present size. The file's header already refers to it.

        The cache has no slices of the former one.
        """
        self.tables.take_l1(table)
        self.new_publisher()
        self.overlap.collect()

    def new_publisher(self) -> None:
        """Start a new published table for the disk's present size; no operation is in flight."""
        self.publisher = Publisher(self)
        self.tables.on_load = self.publisher.load
        self.tables.on_evict = self.publisher.evict
        self.tables.limit = self.publisher.slice_limit(self.settings.l2_slices)
        for found in self.tables.slices.values():
            self.publisher.load(found)

    def take_settings(self, settings: Settings) -> None:
        """Use other settings; no slice is dirty, and no operation is in flight."""
        former, self.settings = self.settings, settings
        if (
            settings.l2_slice_size != self.tables.slice_size
            or settings.overlap != former.overlap  # published entries depend on it
        ):
            self.tables.clear()
        self.tables.configure(
            settings.l2_slice_size, self.publisher.slice_limit(settings.l2_slices)
        )
        self.refcounts.limit = settings.refblocks
        self.overlap.collect()

    async def _read_snapshots(self) -> SnapshotTable:
        """Read the snapshot table; parsing is tried with increasing parts of it."""
        parsed = self.header
        if not parsed.nb_snapshots:
            return SnapshotTable()
        length = _SNAPSHOT_CHUNK
        while True:
            data = await read_bytes(self.file, parsed.snapshots_offset, length)
            parse = partial(self._parse_snapshots, data)
            try:
                # An image may have tens of thousands of snapshots; other tasks must not wait for
                # them.
                return await self.in_thread(parse) if length > _SNAPSHOT_CHUNK else parse()
            except Incomplete:
                if length > layout.MAX_SNAPSHOTS_BYTES:
                    raise BlockError("Snapshot table is too big") from None
                length *= 4

    def _parse_snapshots(self, data: bytes) -> SnapshotTable:
        table = parse_table(data, self.header.nb_snapshots, self.header.size)
        for each in table.entries:
            check_l1(self.geometry, each)
        return table

    async def prepare_writing(self) -> None:
        """Prepare the image for changes; raises BlockError, OSError.

        Unknown autoclear features are cleared, as they may become invalid. Stale bitmaps are
        removed. Refcounts that may be wrong are repaired.
        """
        parsed = self.header
        unknown = parsed.autoclear & ~int(Autoclear.ALL)
        if unknown or parsed.stale_bitmaps:
            known = parsed.autoclear & int(Autoclear.ALL)
            await self.header_file.rewrite(autoclear=known, stale_bitmaps=False)
        if parsed.incompatible & Incompatible.DIRTY:
            from vhostblk.block.drivers.qcow2.check import check

            logger.warning(
                "%s: repairing the image, which was not closed properly", self.file.node.filename
            )
            with errors_as(BlockError, "Could not repair dirty image"):
                await check(self, repair=True)

    # Changing tables; the lock is held.

    async def ensure_table(self, offset: int) -> L2Slice:
        """Return the L2 slice for a guest offset, in a table that only the active disk uses."""
        while True:
            found = await self._own_slice(offset)
            found.pins += 1  # readers hold no lock, and could evict it meanwhile
            try:
                await self._place_slice(found)
            finally:
                found.pins -= 1
            if self.tables.slices.get(found.number) is found:
                return found

    async def _own_slice(self, offset: int) -> L2Slice:
        """Return the L2 slice for a guest offset; a table shared with snapshots is copied."""
        tables = self.tables
        found = await self.reader.slice_at(offset)
        index = tables.l1_index(tables.slice_of(offset))
        word = int(tables.l1[index])
        if found is None or not word & COPIED:
            await self._new_table(index, word)
            found = await tables.load(tables.slice_of(offset))
            assert found is not None
        return found

    async def _place_slice(self, found: L2Slice) -> None:
        """Get storage for an L2 slice; raises OSError, also if it overlaps other metadata."""
        if not found.placed:
            self.overlap.check_table("active_l2", found.host, self.tables.slice_size)
            await self.places.ensure(found.host)
            found.placed = True

    async def become_metadata(self, first: int, count: int, what: str) -> None:
        """Prevent guest writes to free clusters that are about to hold metadata.

        Call this before metadata is written there; `Overlap.metadata_removed` undoes it. In a
        corrupt image, published entries may refer to free clusters. These entries are revoked. A
        later write to such a cluster is then checked, and refused.
        """
        if self.overlap.metadata_added(first, count, what):
            publisher = self.publisher
            if await publisher.take_back(first, count):
                await publisher.settle()

    async def _new_table(self, index: int, word: int) -> None:
        """Give an L1 entry a new L2 table: a copy of the shared table, or an empty one.

        On an error nothing has changed.
        """
        tables, bits = self.tables, self.geometry.cluster_bits
        old = (word & OFFSET_MASK) >> bits
        self.check_l1(index)
        if old:
            self.overlap.check_table("active_l2", old << bits, self.geometry.cluster_size)
        run = await self.allocator.allocate_together(1)
        try:
            await self.become_metadata(run.first, 1, "active_l2")
            await self.places.make(run.first << bits)
            await self.places.ensure(self.header.l1_offset + 8 * index)
            if old:
                await self._load_whole_table(index)
        except BaseException:
            self.overlap.metadata_removed(run.first, 1)
            await self.allocator.free(run)
            raise
        if old:
            tables.move_table(index, run.first << bits)
            self.overlap.metadata_removed(old, 1)
            self.commit.free(old, discard=self.settings.discard_other)
        self.commit.wrote()
        tables.set_l1(index, run.first << bits | COPIED)

    def check_l1(self, index: int, count: int = 1) -> None:
        """Raise OSError if L1 entries overlap other metadata, and so can't be changed."""
        self.overlap.check_table("active_l1", self.header.l1_offset + 8 * index, 8 * count)

    def change_reftable(self, index: int, offset: int) -> None:
        """Set an entry of the refcount table; raises OSError if it overlaps other metadata."""
        place = self.header.reftable_offset + 8 * index
        self.overlap.check_table("refcount_table", place, 8)
        self.refcounts.table[index] = offset
        self.refcounts.dirty_entries.add(index)

    async def _check_block(self, offset: int) -> None:
        """Get storage for a refcount block; raises OSError, also if it overlaps other metadata."""
        self.overlap.check_table("refcount_block", offset, self.geometry.cluster_size)
        await self.places.ensure(offset)

    async def _load_whole_table(self, index: int) -> None:
        """Load all slices of an L2 table into the cache."""
        tables = self.tables
        slices: list[L2Slice] = []
        try:
            for number in tables.slices_of(index):
                found = await tables.load(number)
                assert found is not None
                found.pins += 1
                slices.append(found)
        finally:
            for found in slices:
                found.pins -= 1

    async def relieve(self) -> None:
        """Write metadata if there is too much in memory. An error is reported by the next flush."""
        if self.commit.pressing and not self.unusable:
            try:
                await self.commit.write()
            except OSError as error:
                logger.warning("%s: %s", self.file.node.filename, reason(error))

    def give_up(self, entry: Entry, *, discard: bool | None = None) -> None:
        """Free what a replaced L2 entry referred to."""
        if discard is None:
            discard = self.settings.discard_other
        bits = self.geometry.cluster_bits
        if entry.compressed:
            offset, length = self.geometry.compressed_range(entry.word)
            first = offset >> bits
            self.commit.free(first, (offset + length - 1 >> bits) - first + 1, discard=discard)
        elif entry.host >= 0 and self.geometry.external_data:
            if discard and not self.header.raw_data_file:
                self.commit.forget(entry.host >> bits)
        elif entry.host >= 0:
            self.commit.free(entry.host >> bits, discard=discard)

    # Corruption.

    def corruption(self, text: str, offset: int = -1, size: int = -1) -> None:
        """Report a corruption; an image that is being written becomes unusable."""
        fatal = self.writable
        if self._signalled and (not fatal or self.header.incompatible & Incompatible.CORRUPT):
            return
        self._signalled = True
        name = self.file.node.filename
        if fatal:
            logger.error("qcow2: Marking image as corrupt: %s: %s", name, text)
            self.refuse_writes()
            self.header.incompatible |= Incompatible.CORRUPT
            task = asyncio.get_running_loop().create_task(
                self._mark_corrupt(), name=f"{name}: marking as corrupt"
            )
            self._marking.add(task)
            task.add_done_callback(self._marking.discard)
            task.add_done_callback(log_failure)
        else:
            logger.error("qcow2: Image is corrupt: %s: %s", name, text)
        self.on_corruption(text, offset, size, fatal)

    def refuse_writes(self) -> None:
        """Refuse all further changes of the image, also through the published table."""
        self.unusable = True
        self.writable = False
        self.publisher.revoke_all()

    async def _mark_corrupt(self) -> None:
        if self.header.version < 3:
            return
        try:
            await self.header_file.mark_corrupt()
        except OSError as error:
            name = self.file.node.filename
            logger.error("%s: can't be marked as corrupt: %s", name, reason(error))

    async def settled(self) -> None:
        """Wait for background work."""
        while self._marking:
            await asyncio.wait(set(self._marking))

    def check_usable(self) -> None:
        """Raise OSError if the image was found corrupt."""
        if self.unusable:
            raise OSError(errno.EIO, "qcow2: image is corrupt")

    # Helpers.

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run a function that takes long in a thread."""
        return await asyncio.get_running_loop().run_in_executor(None, function)


def _no_listener(_text: str, _offset: int, _size: int, _fatal: bool) -> None:
    pass
