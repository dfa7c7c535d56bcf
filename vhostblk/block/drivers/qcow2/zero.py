# SPDX-License-Identifier: Apache-2.0
"""Zeroes and discards: changes of L2 entries only, for whole clusters or subclusters."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2.layout import (
    ALL_SUBCLUSTERS,
    SUBCLUSTERS,
    ZERO,
)
from vhostblk.block.drivers.qcow2.mapping import Entry, Kind
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice

_ALL_ZERO = ALL_SUBCLUSTERS << SUBCLUSTERS

#: Number of clusters to change before the event loop can run other tasks.
_TURN = 512


class Zeroer:
    """Makes ranges read as zeroes, and discards ranges; callers hold the image's lock."""

    def __init__(self, image: Image) -> None:
        self._image = image

    async def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make whole subclusters read as zeroes.

        Raises OSError(ENOTSUP), perhaps after a part, if the image can't represent zeroes.
        """
        image = self._image
        geometry = image.geometry
        if geometry.version < 3:
            if image.backing is not None:
                raise os_error(errno.ENOTSUP)
            await self.discard(offset, length)
            return
        if image.header.raw_data_file:
            change = partial(self._zero_entries, unmap=unmap)
            await self._zero_raw(offset, offset + length, change, unmap=unmap)
        else:
            await self._zero_entries(offset, offset + length, unmap=unmap)

    async def _zero_entries(self, offset: int, stop: int, *, unmap: bool) -> None:
        geometry, size, done = self._image.geometry, self._image.size, 0
        while offset < stop:
            done += 1
            if done % _TURN == 0:
                await asyncio.sleep(0)
            inside = offset & (geometry.cluster_size - 1)
            end = min(stop, offset - inside + geometry.cluster_size)
            found, index, entry = await self._entry(offset)
            if inside or (end - offset < geometry.cluster_size and end != size):
                self._zero_subclusters(found, index, entry, offset, end)
            else:
                self._zero_cluster(found, index, entry, unmap)
            offset = end

    async def _zero_raw(
        self, offset: int, stop: int, change: Callable[[int, int], Awaitable[None]], *, unmap: bool
    ) -> None:
        """Zero a range of a data file that is a raw image of the disk, then `change` its entries.

        Overwrites through the published table wait meanwhile. Otherwise the data file would have
        their data, and the disk would have zeroes.
        """
        image = self._image
        tables = image.tables
        flags = WriteFlags.MAY_UNMAP if unmap else WriteFlags.NONE
        while offset < stop:
            end = min(stop, tables.slice_end(offset))
            async with self._overwrites_kept_off(offset, end):
                await image.guest_data.write_zeroes(offset, end - offset, flags)
                image.commit.wrote()
                await change(offset, end)
            offset = end

    @asynccontextmanager
    async def _overwrites_kept_off(self, offset: int, stop: int) -> AsyncIterator[None]:
        """Let overwrites of a range, which is in one slice, wait while the block runs."""
        image = self._image
        if await image.reader.slice_at(offset) is None:
            yield  # no cluster is allocated, so all writes take the image's lock
            return
        found = await image.ensure_table(offset)
        bits, mask = image.geometry.cluster_bits, image.tables.entry_mask
        low, high = offset >> bits & mask, (stop - 1 >> bits & mask) + 1
        found.pins += 1
        image.publisher.revoke(found, low, high)
        try:
            await image.publisher.settle()
            yield
        finally:
            image.publisher.restore(found, low, high)
            found.pins -= 1

    async def _entry(self, offset: int) -> tuple[L2Slice, int, Entry]:
        image = self._image
        found = await image.ensure_table(offset)
        cluster = offset >> image.geometry.cluster_bits
        index = cluster & image.tables.entry_mask
        return found, index, image.reader.entry_at(found, index, cluster)

    def _zero_cluster(self, found: L2Slice, index: int, entry: Entry, unmap: bool) -> None:
        image = self._image
        allocated = entry.compressed or entry.host >= 0
        give_up = entry.compressed or (unmap and allocated)
        if give_up and image.settings.discard_no_unref and not entry.compressed:
            give_up = False
        word = 0 if give_up or not allocated else entry.word & ~ZERO
        self._set(found, index, entry, word, _ALL_ZERO)
        if give_up:
            image.give_up(entry, discard=image.settings.discard_request)

    def _zero_subclusters(
        self, found: L2Slice, index: int, entry: Entry, start: int, stop: int
    ) -> None:
        geometry = self._image.geometry
        if entry.compressed or not geometry.extended_l2:
            raise os_error(errno.ENOTSUP)
        inside = start & (geometry.cluster_size - 1)
        first = inside >> geometry.subcluster_bits
        last = inside + stop - start - 1 >> geometry.subcluster_bits
        mask = (2 << last) - (1 << first)
        bitmap = entry.data & ~mask | (entry.zero | mask) << SUBCLUSTERS
        self._set(found, index, entry, entry.word, bitmap)

    async def discard(self, offset: int, length: int) -> None:
        """Discard whole clusters."""
        image = self._image
        geometry = image.geometry
        if geometry.version < 3 and image.backing is not None:
            raise os_error(errno.ENOTSUP)
        if image.header.raw_data_file:
            await self._zero_raw(offset, offset + length, self._discard_entries, unmap=True)
        else:
            await self._discard_entries(offset, offset + length)

    async def _discard_entries(self, offset: int, stop: int) -> None:
        image, done = self._image, 0
        while offset < stop:
            done += 1
            if done % _TURN == 0:
                await asyncio.sleep(0)
            found = await image.reader.slice_at(offset)
            if found is None and image.backing is None:
                offset = image.tables.slice_end(offset)
                continue
            found, index, entry = await self._entry(offset)
            self._discard_cluster(found, index, entry)
            offset += image.geometry.cluster_size

    async def forget(self, first: int, last: int) -> None:
        """Free guest clusters [first, last), which will be past the disk's end."""
        image = self._image
        bits = image.geometry.cluster_bits
        for cluster in range(first, last):
            if cluster % _TURN == 0:
                await asyncio.sleep(0)
            found = await image.reader.slice_at(cluster << bits)
            if found is None:
                continue
            index = cluster & image.tables.entry_mask
            words = image.tables.words_per_entry
            if not found.words[index * words : (index + 1) * words].any():
                continue
            found, index, entry = await self._entry(cluster << bits)
            found.words[index * words : (index + 1) * words] = 0
            found.touch(index, index + 1)
            image.publisher.update(found, index, index + 1)
            image.give_up(entry, discard=image.settings.discard_other)

    def _discard_cluster(self, found: L2Slice, index: int, entry: Entry) -> None:
        image = self._image
        geometry = image.geometry
        allocated = entry.compressed or entry.host >= 0
        if not allocated and image.backing is None:
            return
        if not allocated and entry.zero == (ALL_SUBCLUSTERS if geometry.extended_l2 else 1):
            return
        keep = image.settings.discard_no_unref and not entry.compressed
        word = entry.word & ~ZERO if keep else 0
        self._set(found, index, entry, word, _ALL_ZERO)
        if allocated and not keep:
            image.give_up(entry, discard=image.settings.discard_request)

    def _set(self, found: L2Slice, index: int, entry: Entry, word: int, bitmap: int) -> None:
        """Change an L2 entry; `bitmap` has the zero bits, also for standard entries."""
        image = self._image
        geometry = image.geometry
        if geometry.extended_l2:
            before = (int(found.words[2 * index]), int(found.words[2 * index + 1]))
            if before == (word, bitmap):
                return
            found.words[2 * index], found.words[2 * index + 1] = word, bitmap
        else:
            if geometry.version >= 3:
                word |= ZERO
            if int(found.words[index]) == word:
                return
            found.words[index] = word
        found.touch(index, index + 1)
        image.publisher.update(found, index, index + 1)

    async def zero_around(self, offset: int, end: int) -> bool:
        """Make the subcluster at `offset` a zero subcluster; return False if it has other data.

        Afterwards it doesn't depend on the backing file. `end` is the end of the disk.
        """
        image = self._image
        unit = image.geometry.subcluster_size
        start = offset // unit * unit
        if image.header.raw_data_file:  # it has nothing past the disk's end
            return False
        if not await self.reads_zero(start, min(unit, end - start)):
            return False
        if image.geometry.version >= 3:
            await self.zero(start, unit, unmap=False)
        return True

    async def reads_zero(self, offset: int, length: int) -> bool:
        """Return whether a range already reads as zeroes, by the tables."""
        image = self._image
        for piece in await image.reader.pieces(offset, length):
            if piece.kind is Kind.UNALLOCATED:
                below = image.backing
                if below is not None and not below.known_zero(piece.offset, piece.length):
                    return False
            elif piece.kind is not Kind.ZERO:
                return False
        return True
