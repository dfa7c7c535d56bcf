# SPDX-License-Identifier: Apache-2.0
"""`BitmapStore`: loading and storing the dirty bitmaps of an image.

While the image is writable, each bitmap in the file is marked as in use: its content is out of
date, and after a crash the mark tells the next program. When writing ends, bitmaps are written to
new clusters. Once these are on stable storage, a header write of one sector (see `header`) refers
to a new directory and makes all bitmaps valid together. So a bitmap in the file is correct or
marked.

Writers hold the image's lock; no request is in flight.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.bitmaps import (
    Bitmap,
    encode_directory,
    entry_size,
    parse_directory,
    table_is_good,
    table_offsets,
    table_ones,
)
from vhostblk.block.drivers.qcow2.header import BitmapsExtension
from vhostblk.block.drivers.qcow2.layout import Autoclear
from vhostblk.block.drivers.qcow2.transfer import read_array, read_bytes, write_array, write_bytes
from vhostblk.block.errors import BlockError
from vhostblk.errors import errors_as, os_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image

#: The limit of memory for all bitmaps of an image together.
MAX_TOTAL_BYTES = 1 << 30
#: Number of bytes to read or write at once.
_CHUNK = 1 << 20


class BitmapStore:
    """The bitmap directory of an image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        #: The directory in the file.
        self.entries: list[Bitmap] = []

    def find(self, name: str) -> Bitmap | None:
        """Return the entry of a bitmap."""
        return next((each for each in self.entries if each.text == name), None)

    # Reading.

    async def load_directory(self) -> None:
        """Read the directory; raises BlockError or OSError."""
        image = self._image
        extension = image.header.bitmaps
        if extension is None:
            return
        raw = await read_bytes(image.file, extension.offset, extension.size)
        self.entries = parse_directory(raw, extension.number, image.geometry, image.size)

    async def load(self) -> list[DirtyBitmap]:
        """Read all bitmaps; raises BlockError."""
        loaded: list[DirtyBitmap] = []
        room = MAX_TOTAL_BYTES
        for entry in self.entries:
            bits = -(-self._image.size >> entry.granularity_bits)
            room -= bits >> 3
            if bits >> 3 > layout.MAX_BITMAP_BYTES or room < 0:
                raise BlockError(
                    f"Could not read bitmap '{entry.text}' from image: bitmaps are too large"
                )
            bitmap = DirtyBitmap(
                entry.text,
                entry.granularity_bits,
                self._image.size,
                disabled=entry.in_use or not entry.records,
                persistent=True,
                inconsistent=entry.in_use,
            )
            if not entry.in_use:
                what = f"Could not read bitmap '{entry.text}' from image"
                with errors_as(BlockError, what):
                    await self._load_data(entry, bitmap)
            loaded.append(bitmap)
        return loaded

    async def _read_table(self, entry: Bitmap) -> NDArray[np.uint64]:
        """Read a bitmap's table; raises OSError."""
        image = self._image
        raw = await read_array(image.file, entry.table_offset, entry.table_size, ">u8")
        table = raw.astype(np.uint64)
        if not table_is_good(table, image.geometry):
            raise os_error(errno.EINVAL)
        return table

    async def _load_data(self, entry: Bitmap, bitmap: DirtyBitmap) -> None:
        image, geometry = self._image, self._image.geometry
        what = f"Could not read bitmap_table table from image for bitmap '{entry.text}'"
        with errors_as(BlockError, what):
            table = await self._read_table(entry)
        if geometry.clusters(bitmap.nbytes) != entry.table_size:
            raise os_error(errno.EINVAL)
        for index in np.flatnonzero(table_ones(table)).tolist():
            bitmap.load_part(index << geometry.cluster_bits, geometry.cluster_size, None)
        offsets = table_offsets(table)
        for index in np.flatnonzero(offsets).tolist():
            start = index << geometry.cluster_bits
            length = min(geometry.cluster_size, bitmap.nbytes - start)
            data = await read_array(image.file, int(offsets[index]), length, np.uint8)
            bitmap.load_part(start, length, data)
        bitmap.finish_load()

    # Changing.

    async def mark_in_use(self) -> None:
        """Mark all bitmaps in the file before the disk changes; raises OSError.

        If only a part is written, some are marked and some are not. Both states are correct.
        """
        image, extension = self._image, self._image.header.bitmaps
        await image.header_file.confirm()
        if extension is None or all(entry.in_use for entry in self.entries):
            return
        image.overlap.check_table("bitmap_directory", extension.offset, extension.size)
        marked = [replace(each, flags=each.flags | layout.BITMAP_IN_USE) for each in self.entries]
        await write_bytes(image.file, extension.offset, encode_directory(marked))
        await image.file.flush()
        self.entries = marked

    async def store(self, bitmaps: Iterable[DirtyBitmap]) -> None:
        """Write the persistent bitmaps, and clear their marks; raises OSError."""
        chosen = {
            str(each.name): each
            for each in bitmaps
            if each.persistent and not each.inconsistent and not each.read_only
        }
        if not chosen:
            return
        for name, bitmap in chosen.items():
            former = self.find(name)
            if former is not None and not former.in_use:
                raise OSError(errno.EINVAL, f"Bitmap '{name}' already exists in the image")
            text = check_constraints(self._image, name, bitmap.granularity)
            if text is not None:
                raise OSError(
                    errno.EINVAL, f"Bitmap '{name}' doesn't satisfy the constraints: {text}"
                )
        dropped = await self._clusters_of(entry for entry in self.entries if entry.text in chosen)
        names = {entry.text: entry.name for entry in self.entries}
        names.update((name, name.encode()) for name in chosen if name not in names)
        taken: list[int] = []
        try:
            kept = {entry.text: entry for entry in self.entries}
            for name, bitmap in chosen.items():
                kept[name] = await self._write_bitmap(names[name], bitmap, taken)
            await self._replace_directory(list(kept.values()), taken)
        except BaseException:
            self._give_back(taken)
            raise
        self._free(dropped)

    async def remove(self, name: str) -> None:
        """Remove a bitmap from the image; raises OSError."""
        entry = self.find(name)
        if entry is None:
            return
        taken: list[int] = []
        clusters = await self._clusters_of([entry])
        try:
            await self._replace_directory(
                [each for each in self.entries if each is not entry], taken
            )
        except BaseException:
            self._give_back(taken)
            raise
        self._free(clusters)
        await self._image.commit.write()

    async def _allocate(self, count: int, taken: list[int]) -> list[int]:
        """Allocate clusters."""
        clusters = [
            cluster
            for run in await self._image.allocator.allocate(count)
            for cluster in range(run.first, run.first + run.length)
        ]
        taken += clusters
        return clusters

    async def _allocate_together(self, nbytes: int, taken: list[int]) -> int:
        """Allocate consecutive clusters; return the offset."""
        geometry = self._image.geometry
        run = await self._image.allocator.allocate_together(geometry.clusters(nbytes))
        taken += range(run.first, run.first + run.length)
        return run.first << geometry.cluster_bits

    def _give_back(self, taken: list[int]) -> None:
        """Free clusters that nothing in the file refers to."""
        for cluster in taken:
            self._image.commit.free(cluster)

    async def _write_bitmap(self, name: bytes, bitmap: DirtyBitmap, taken: list[int]) -> Bitmap:
        """Write a bitmap's data and table; return its entry."""
        image, geometry = self._image, self._image.geometry
        count = max(geometry.clusters(bitmap.nbytes), 1)
        table = np.zeros(count, np.uint64)
        step = max(_CHUNK >> geometry.cluster_bits, 1)
        for first in range(0, count, step):
            part = np.zeros((min(step, count - first), geometry.cluster_size), np.uint8)
            data = bitmap.part(first << geometry.cluster_bits, part.size)
            part.reshape(-1)[: len(data)] = data
            places = np.flatnonzero(part.any(axis=1))
            if not len(places):
                continue
            clusters = await self._allocate(len(places), taken)
            table[first + places] = np.array(clusters, np.uint64) << np.uint64(
                geometry.cluster_bits
            )
            for low, high in _runs(clusters):
                await write_array(
                    image.file, clusters[low] << geometry.cluster_bits, part[places[low:high]]
                )
        offset = await self._allocate_together(8 * count, taken)
        await write_array(image.file, offset, table.astype(">u8"))
        flags = layout.BITMAP_AUTO if bitmap.recording else 0
        return Bitmap(name, offset, count, flags, bitmap.granularity_bits)

    async def _replace_directory(self, entries: list[Bitmap], taken: list[int]) -> None:
        """Switch to another directory, once all that it refers to is on stable storage."""
        image, geometry = self._image, self._image.geometry
        former = image.header.bitmaps
        raw, offset = b"", 0
        if entries:
            raw = encode_directory(entries)
            offset = await self._allocate_together(len(raw), taken)
        first, clusters = offset >> geometry.cluster_bits, geometry.clusters(len(raw))
        try:
            if entries:
                await image.become_metadata(first, clusters, "bitmap_directory")
                await write_bytes(image.file, offset, raw)
            await self._change_header(len(entries), len(raw), offset)
        except BaseException:
            image.overlap.metadata_removed(first, clusters)
            raise
        self.entries = entries
        image.overlap.collect()
        if former is not None:
            bits = image.geometry.cluster_bits
            image.commit.free(
                former.offset >> bits,
                image.geometry.clusters(former.size),
                discard=image.settings.discard_other,
            )

    async def _change_header(self, count: int, nbytes: int, offset: int) -> None:
        """Put the new directory on stable storage, then write a header that refers to it."""
        image, header = self._image, self._image.header
        extension = BitmapsExtension(count, nbytes, offset) if count else None
        autoclear = header.autoclear & ~int(Autoclear.BITMAPS)
        if extension is not None:
            autoclear |= int(Autoclear.BITMAPS)
        image.commit.wrote()
        await image.commit.write()
        await image.commit.sync()
        try:
            await image.header_file.rewrite(bitmaps=extension, autoclear=autoclear)
        except BlockError as error:
            raise OSError(errno.ENOSPC, str(error)) from error

    async def _clusters_of(self, entries: Iterable[Bitmap]) -> list[int]:
        """Return the clusters that bitmaps occupy."""
        geometry, clusters = self._image.geometry, list[int]()
        for entry in entries:
            try:
                offsets = table_offsets(await self._read_table(entry))
            except OSError:
                continue  # leaks these clusters
            clusters += (offsets[offsets != 0] >> np.uint64(geometry.cluster_bits)).tolist()
            first = entry.table_offset >> geometry.cluster_bits
            clusters += range(first, first + geometry.clusters(8 * entry.table_size))
        return clusters

    def _free(self, clusters: list[int]) -> None:
        """Free the clusters of bitmaps that are no longer in the directory."""
        for cluster in clusters:
            self._image.commit.free(cluster, discard=self._image.settings.discard_other)

    # Checks.

    def check_new(self, name: str, granularity: int, bitmaps: list[DirtyBitmap]) -> None:
        """Raise BlockError if no other bitmap can be stored; its text is the reason."""
        if self._image.header.version < 3:
            raise BlockError("Cannot store dirty bitmaps in qcow2 v2 files")
        text = check_constraints(self._image, name, granularity)
        if text is not None:
            raise BlockError(text)
        names = [str(each.name) for each in bitmaps if each.persistent]
        if len(names) >= layout.MAX_BITMAPS:
            raise BlockError("Maximum number of persistent bitmaps is already reached")
        if sum(entry_size(each.encode()) for each in [*names, name]) > (
            layout.MAX_BITMAP_DIRECTORY_BYTES
        ):
            raise BlockError("Not enough space in the bitmap directory")

    def check_resize(self, bitmaps: list[DirtyBitmap]) -> None:
        """Raise OSError if a bitmap can't be resized with the disk."""
        named = {each.name: each for each in bitmaps}
        for entry in self.entries:
            bitmap = named.get(entry.text)
            if bitmap is None:
                raise OSError(
                    errno.ENOTSUP,
                    "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory",
                )
            try:
                node_bitmaps.check(bitmap)
            except BlockError as error:
                raise OSError(errno.ENOTSUP, str(error)) from error


def check_constraints(image: Image, name: str, granularity: int) -> str | None:
    """Return why a bitmap can't be stored."""
    highest, lowest = 1 << layout.MAX_GRANULARITY_BITS, 1 << layout.MIN_GRANULARITY_BITS
    if granularity > highest:
        return f"Granularity exceeds maximum ({highest} bytes)"
    if granularity < lowest:
        return f"Granularity is under minimum ({lowest} bytes)"
    bits = (image.size + granularity - 1) // granularity
    if (bits + 7) // 8 > layout.MAX_BITMAP_BYTES:
        return "Too much space will be occupied by the bitmap. Use larger granularity"
    if len(name.encode(errors="surrogateescape")) > layout.MAX_BITMAP_NAME:
        return f"Name length exceeds maximum ({layout.MAX_BITMAP_NAME} characters)"
    return None


def _runs(clusters: list[int]) -> list[tuple[int, int]]:
    """Split a list of clusters into ranges [low, high) of consecutive ones."""
    array: NDArray[Any] = np.array(clusters)
    breaks = [0, *(np.flatnonzero(np.diff(array) != 1) + 1).tolist(), len(clusters)]
    return list(pairwise(breaks))
