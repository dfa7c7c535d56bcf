# SPDX-License-Identifier: Apache-2.0
"""Allocation of host clusters, and growth of the refcount structures and the file.

Clusters past `high_water` have never been in use. If growing the file adds a hole, they read as
zeroes, so only the guest's data has to be written to them.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vhostblk.block.drivers.qcow2.layout import MAX_CLUSTER_OFFSET, MAX_REFTABLE_BYTES
from vhostblk.block.drivers.qcow2.refcounts import RefBlock
from vhostblk.errors import errors_as, os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.schema.common import PreallocMode

#: The file grows by this many bytes if possible. The new part is a hole; making it costs one call
#: in a thread.
GROWTH = 64 << 20
#: After this many refcount blocks without a free cluster, other tasks get a turn.
_TURN = 32


class Run(NamedTuple):
    """Consecutive host clusters."""

    first: int
    length: int
    #: Never used before: a hole, which reads as zeroes.
    fresh: bool = False


class Allocator:
    """Allocates clusters. Callers hold the image's lock."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._geometry = image.geometry
        #: All clusters before this one are in use.
        self.hint = 0
        #: Clusters from here on have never been in use.
        self.high_water = image.geometry.clusters(image.file.node.size)
        #: The file has been extended in advance.
        self._grown = False
        #: The number of bytes to extend the file by, in addition to what is needed.
        self._ahead = GROWTH
        #: Compressed data may follow at this byte, in the rest of its cluster; 0: nowhere.
        self._packed_end = 0

    @property
    def gives_fresh(self) -> bool:
        """Whether the next allocated clusters will be in a never used part of the file."""
        return self._image.grows_with_zeroes and self.hint >= self.high_water

    async def allocate(self, count: int) -> list[Run]:
        """Allocate `count` clusters with refcount 1. On OSError none are allocated."""
        if self._image.overlap.incomplete:
            await self._image.overlap.complete()
        runs: list[Run] = []
        position = self.hint
        try:
            while count:
                first, length = await self._find(position, count)
                fresh = await self._take(first, length)
                runs.append(Run(first, length, fresh))
                position = first + length
                count -= length
        except OSError:
            for run in runs:
                await self.free(run)
            raise
        self.hint = position
        return runs

    async def allocate_together(self, count: int) -> Run:
        """Allocate `count` consecutive clusters. New refcount blocks for them go before them."""
        if self._image.overlap.incomplete:
            await self._image.overlap.complete()
        position = self.hint
        while True:
            missing: list[int] = []
            start, length = await self._find(position, count)
            if position == self.hint:
                self.hint = start
            if length < count:
                length, missing = await self._extend(start, length, count)
            if length < count + len(missing):
                position = start + length
            elif missing and missing[-1] >= len(self._image.refcounts.table):
                await self._grow_table(missing[-1], count)
            else:
                break
        self._check_take(start, count + len(missing))
        for place, index in enumerate(missing, start):
            await self._add_block(index, place)
        first = start + len(missing)
        fresh = await self._take(first, count)
        if start == self.hint:
            self.hint = first + count
        return Run(first, count, fresh)

    async def free(self, run: Run) -> None:
        """Undo `allocate_together`. Nothing in the file may refer to the clusters.

        If that fails, the clusters are leaked.
        """
        with suppress(OSError):
            self.released(await self._image.refcounts.change(run.first, run.length, -1))

    async def allocate_bytes(self, nbytes: int) -> int:
        """Allocate space for compressed data, less than a cluster; return its offset.

        The refcount of each host cluster that contains a part of it increases by one. Raises
        OSError.
        """
        geometry, refcounts = self._geometry, self._image.refcounts
        bits, start = geometry.cluster_bits, self._packed_end
        shared = start >> bits
        if start and await refcounts.get(shared) == geometry.refcount_max:
            start = 0
        room = -start & (geometry.cluster_size - 1)
        new = 0
        if nbytes > room:
            new = (await self.allocate_together(1)).first
            if not start or new != shared + 1:
                start, room = new << bits, 0
        try:
            if start + nbytes > geometry.compressed_limit:
                raise os_error(errno.EFBIG)
            if room:
                await refcounts.change(shared, 1, 1)
        except OSError:
            if new:
                await self.free(Run(new, 1))
            raise
        end = start + nbytes
        self._packed_end = end if end & (geometry.cluster_size - 1) else 0
        return start

    async def free_bytes(self, offset: int, nbytes: int) -> None:
        """Undo `allocate_bytes`, like `free`."""
        bits = self._geometry.cluster_bits
        first = offset >> bits
        await self.free(Run(first, (offset + nbytes - 1 >> bits) - first + 1))

    def released(self, clusters: NDArray[np.int64]) -> None:
        """Record that clusters are free again."""
        if len(clusters):
            self.hint = min(self.hint, int(clusters[0]))
            if (clusters == self._packed_end >> self._geometry.cluster_bits).any():
                self._packed_end = 0

    def used(self, cluster: int) -> None:
        """Record a write to a cluster that the image refers to.

        If the end of the file is missing, the cluster may be past it.
        """
        self.high_water = max(self.high_water, cluster + 1)

    def forget_places(self) -> None:
        """Search for free clusters from the start again: refcounts have been repaired."""
        self.hint = self._packed_end = 0

    async def _find(self, start: int, count: int) -> tuple[int, int]:
        """Return the first free clusters from `start` on, at most `count` and at least one.

        The clusters are counted in one refcount block.
        """
        refcounts, bits = self._image.refcounts, self._geometry.refblock_bits
        size, looked = 1 << bits, 0
        while True:
            index = start >> bits
            block = await refcounts.block(index)
            if block is None:
                if index >= len(refcounts.table):
                    await self._grow_table(index, count)
                else:
                    await self._add_block(index, max(start, 1))
                continue
            low = start & (size - 1)
            if low + count <= size and not block.values[low : low + count].any():
                return start, count
            window = min(size, low + 2 * count + 256)
            free = np.flatnonzero(block.values[low:window] == 0)
            if not len(free):
                low, free = window, np.flatnonzero(block.values[window:] == 0)
            if len(free):
                return (index << bits) + low + int(free[0]), int(_leading_run(free[:count]))
            start = (index + 1) << bits
            looked += 1
            if looked % _TURN == 0:
                await asyncio.sleep(0)

    async def _extend(self, first: int, length: int, count: int) -> tuple[int, list[int]]:
        """Extend a run of free clusters beyond its refcount block.

        Return its length, and the blocks that are missing for it. A missing block doesn't end the
        run, as all its clusters are free. The run includes one more cluster for each missing block,
        if possible.
        """
        bits = self._geometry.refblock_bits
        missing: list[int] = []
        if (first + length) & ((1 << bits) - 1):
            return length, missing  # the next cluster is in use
        while length < count + len(missing):
            index = (first + length) >> bits
            block = await self._image.refcounts.block(index)
            if block is None:
                missing.append(index)
                length += 1 << bits
                continue
            values = block.values[: count + len(missing) - length]
            used = np.flatnonzero(values)
            if len(used):
                return length + int(used[0]), missing
            length += len(values)
        return length, missing

    def _check_take(self, first: int, count: int) -> None:
        """Raise OSError if clusters with refcount 0 can't be allocated."""
        if (first + count) << self._geometry.cluster_bits > MAX_CLUSTER_OFFSET:
            raise os_error(errno.EFBIG)
        self._image.overlap.check_allocation(first, count)
        if first == 0:  # the header's, whatever its refcount says; entries with 0 refer to nothing
            self._image.corruption("Preventing invalid allocation of clusters at offset 0", 0)
            raise os_error(errno.EIO)

    async def _take(self, first: int, count: int) -> bool:
        """Allocate free clusters; return whether they are fresh."""
        geometry = self._geometry
        self._check_take(first, count)
        await self._grow_file(first + count)
        await self._image.refcounts.change(first, count, 1)
        fresh = (
            first >= self.high_water
            and self._image.grows_with_zeroes
            and (first + count) << geometry.cluster_bits <= self._image.file.node.size
        )
        self.high_water = max(self.high_water, first + count)
        return fresh

    async def extend(self, clusters: int) -> None:
        """Extend the file to this many clusters; all of them count as used."""
        await self._grow_file(clusters)
        self.high_water = max(self.high_water, clusters)

    async def reserve(self, clusters: int, mode: PreallocMode) -> None:
        """Extend the file to this many clusters, with storage. Unused ones are trimmed later.

        Raises OSError.
        """
        image = self._image
        end = clusters << self._geometry.cluster_bits
        await self.trim()  # holes don't become storage
        if end > image.file.node.size:
            with errors_as(OSError, "Failed to resize underlying file"):
                await image.file.truncate(end, mode)
            self._grown = True

    async def trim(self) -> None:
        """Cut off what was added to the file in advance."""
        image = self._image
        if not self._grown:
            return
        self._grown = False
        end = self.high_water << self._geometry.cluster_bits
        if image.file.node.size > end:
            await image.file.truncate(end)

    async def _grow_file(self, clusters: int) -> None:
        """Extend the file for `clusters` clusters; raises OSError.

        If possible, the file is extended further. After a failure less is added, as the length of a
        file may be limited.
        """
        file, end = self._image.file, clusters << self._geometry.cluster_bits
        while end > file.node.size:
            try:
                await file.truncate(end + self._ahead)
            except OSError as error:
                if error.errno == errno.ENOTSUP:
                    return  # can't be resized: it grows by writing, or it is full
                if not self._ahead:
                    if error.errno == errno.EINVAL:  # a device can't be extended
                        raise os_error(errno.ENOSPC) from error
                    raise
                self._ahead //= 2
                if self._ahead < self._geometry.cluster_size:
                    self._ahead = 0
            else:
                self._grown = True
                self._ahead = min(max(2 * self._ahead, self._geometry.cluster_size), GROWTH)
                return

    async def _add_block(self, index: int, own: int) -> None:
        """Add the refcount block `index` in the free cluster `own`; its clusters are all free.

        The cluster `own` is counted in the new block, or in another, existing one.
        """
        image, geometry = self._image, self._geometry
        refcounts, bits = image.refcounts, geometry.refblock_bits
        values = np.zeros(1 << bits, block_dtype(geometry.refcount_order))
        image.overlap.check_allocation(own, 1)
        await self._grow_file(own + 1)
        counted = False
        try:
            await image.become_metadata(own, 1, "refcount_block")
            await image.places.make(own << geometry.cluster_bits)
            await image.places.ensure(image.header.reftable_offset + 8 * index)
            if own >> bits == index:
                values[own & ((1 << bits) - 1)] = 1
            else:
                if own >> bits in refcounts.dirty_entries:
                    # The file's table must refer to the block that counts `own` before it refers to
                    # this one.
                    await image.commit.write_refcounts()
                await refcounts.change(own, 1, 1)
                counted = True
            image.change_reftable(index, own << geometry.cluster_bits)
        except BaseException:
            image.overlap.metadata_removed(own, 1)
            if counted:
                await self.free(Run(own, 1))
            raise
        self.high_water = max(self.high_water, own + 1)
        block = RefBlock(index, own << geometry.cluster_bits, values)
        block.touch(0, 1 << bits)
        refcounts.add(block)

    async def _grow_table(self, index: int, ahead: int) -> None:
        """Move the refcount table to a larger place, past all clusters in use.

        The new table and the blocks that count its clusters and their own are contiguous. The table
        has room for block `index`, and for `ahead` more clusters and their blocks.
        """
        image, geometry = self._image, self._geometry
        refcounts, bits = image.refcounts, geometry.refblock_bits
        ahead += (ahead >> bits - 1) + 3
        longer = min(len(refcounts.table) * 3 // 2, MAX_REFTABLE_BYTES >> 3)
        per_cluster = geometry.cluster_size >> 3
        start = max(len(refcounts.table) << bits, self.high_water)
        table_clusters = blocks = 0
        while True:
            last = start + table_clusters + blocks - 1
            needed_blocks = (last >> bits) - (start >> bits) + 1
            entries = max((last + ahead >> bits) + 1, index + 1, longer)
            needed_table = -(-entries // per_cluster)
            if (needed_blocks, needed_table) == (blocks, table_clusters):
                break
            blocks, table_clusters = needed_blocks, max(needed_table, table_clusters)
        if table_clusters * geometry.cluster_size > MAX_REFTABLE_BYTES:
            raise os_error(errno.EFBIG)
        total = table_clusters + blocks
        image.overlap.check_allocation(start, total)
        table = np.zeros(table_clusters * per_cluster, np.uint64)
        table[: len(refcounts.table)] = refcounts.table
        new_blocks = []
        for number in range(blocks):
            at = start + table_clusters + number
            block_index = (start >> bits) + number
            if table[block_index]:
                raise os_error(errno.EIO)
            block = RefBlock(
                block_index,
                at << geometry.cluster_bits,
                np.zeros(1 << bits, block_dtype(geometry.refcount_order)),
            )
            table[block_index] = block.host
            low = max(start, block_index << bits) - (block_index << bits)
            high = min(start + total, (block_index + 1) << bits) - (block_index << bits)
            block.values[low:high] = 1
            block.touch(0, 1 << bits)
            new_blocks.append(block)
        await self._grow_file(start + total)
        try:
            await image.become_metadata(start, table_clusters, "refcount_table")
            await image.become_metadata(start + table_clusters, blocks, "refcount_block")
            await image.commit.write_reftable(table, start << geometry.cluster_bits, new_blocks)
        except BaseException:
            image.overlap.metadata_removed(start, total)
            await self._cut_off(start, total)
            raise
        self.high_water = max(self.high_water, start + total)
        await image.commit.use_reftable(table, start << geometry.cluster_bits, new_blocks)

    async def _cut_off(self, first: int, count: int) -> None:
        """Discard the content of unused clusters at the end of the file by truncating it."""
        try:
            await self._image.file.truncate(first << self._geometry.cluster_bits)
        except OSError:
            self.high_water = max(self.high_water, first + count)  # not zeroes any more


def _leading_run(places: NDArray[Any]) -> int:
    """Return how many of the sorted numbers are consecutive from the first one on."""
    gaps = np.flatnonzero(np.diff(places) != 1)
    return int(gaps[0]) + 1 if len(gaps) else len(places)


def block_dtype(order: int) -> np.dtype[Any]:
    """Return the type of a refcount block's numbers in memory."""
    return np.dtype(f"u{max(1, 1 << order >> 3)}")
