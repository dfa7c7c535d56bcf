# SPDX-License-Identifier: Apache-2.0
"""Mapping of guest ranges, and reads."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.drivers.qcow2 import compressed
from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, in_hex
from vhostblk.block.drivers.qcow2.mapping import Entry, Kind, take_apart
from vhostblk.block.drivers.qcow2.transfer import read_bytes, run_all
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.io.iovec import IoVec

#: Number of decompressed clusters to keep for later reads.
_KEPT_CLUSTERS = 4


class Piece(NamedTuple):
    """A run of guest bytes of one kind.

    `host` is the offset in the data file; for compressed data, the L2 entry; -1: none.
    """

    kind: Kind
    offset: int
    length: int
    host: int


class Reader:
    """Reads guest data through the L2 tables."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._kept: dict[int, bytes] = {}

    async def slice_at(self, offset: int) -> L2Slice | None:
        """Return the L2 slice for a guest offset; None: there is no L2 table."""
        image = self._image
        tables = image.tables
        number = tables.slice_of(offset)
        found = tables.slices.get(number)
        if found is not None:
            found.used = True
            return found
        index = tables.l1_index(number)
        if index >= len(tables.l1):
            return None
        table = int(tables.l1[index]) & OFFSET_MASK
        if table & (image.geometry.cluster_size - 1):
            image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {in_hex(index)})")
            raise os_error(errno.EIO)
        if not table:
            return None
        if image.overlap.incomplete and image.writable:
            await image.overlap.complete()
        return await tables.load(number)

    def entry_at(self, found: L2Slice, index: int, cluster: int) -> Entry:
        """Return entry `index` of a slice, which maps guest cluster `cluster`.

        Raises OSError(EIO) if it is invalid; the image is then marked corrupt.
        """
        image = self._image
        geometry, words = image.geometry, found.words
        if geometry.extended_l2:
            entry = take_apart(geometry, int(words[2 * index]), int(words[2 * index + 1]))
        else:
            entry = take_apart(geometry, int(words[index]), 0)
        where = f"(L2 offset: {found.host:#x}, L2 index: {in_hex(index)})"
        if not entry.valid:
            image.corruption(_invalid(entry, geometry.version) + where)
            raise os_error(errno.EIO)
        if entry.host >= 0:
            if entry.host & (geometry.cluster_size - 1):
                image.corruption(f"Cluster allocation offset {entry.host:#x} unaligned {where}")
                raise os_error(errno.EIO)
            guest = cluster << geometry.cluster_bits
            if geometry.external_data and entry.host != guest:
                image.corruption(
                    f"External data file host cluster offset {entry.host:#x} does not match guest "
                    f"cluster offset: {in_hex(guest)}{where[1:]}"
                )
                raise os_error(errno.EIO)
        return entry

    def known_absent(self, offset: int, length: int) -> bool:
        """Return whether, by the tables in memory, a range is not allocated in the image."""
        tables, bits = self._image.tables, self._image.geometry.cluster_bits
        number = tables.slice_of(offset)
        if number != tables.slice_of(offset + length - 1):
            return False
        found = tables.slices.get(number)
        if found is None:
            index = tables.l1_index(number)
            return index < len(tables.l1) and not int(tables.l1[index]) & OFFSET_MASK
        mask, step = tables.entry_mask, tables.words_per_entry
        first, last = offset >> bits & mask, (offset + length - 1) >> bits & mask
        return not found.words[first * step : (last + 1) * step].any()

    async def pieces(self, offset: int, length: int) -> list[Piece]:
        """Split a guest range into runs of one kind, contiguous in the data file."""
        image = self._image
        geometry, tables = image.geometry, image.tables
        result: list[Piece] = []
        stop = offset + length
        while offset < stop:
            found = await self.slice_at(offset)
            end = min(stop, tables.slice_end(offset))
            if found is None:
                if tables.l1_index(tables.slice_of(offset)) < len(tables.l1):
                    end = min(stop, tables.table_end(offset))
                _append(result, Piece(Kind.UNALLOCATED, offset, end - offset, -1))
                offset = end
                continue
            mask = tables.entry_mask
            while offset < end:
                cluster = offset >> geometry.cluster_bits
                entry = self.entry_at(found, cluster & mask, cluster)
                offset = self._cluster_pieces(result, entry, offset, end)
        return result

    def _cluster_pieces(self, result: list[Piece], entry: Entry, offset: int, end: int) -> int:
        """Add the pieces of [offset, end) in the cluster of `offset`; return their end."""
        geometry = self._image.geometry
        start = offset & -geometry.cluster_size
        end = min(end, start + geometry.cluster_size)
        if entry.compressed:
            result.append(Piece(Kind.COMPRESSED, offset, end - offset, entry.word))
            return end
        while offset < end:
            inside = offset - start
            kind = entry.kind(inside >> geometry.subcluster_bits)
            border = start + ((inside >> geometry.subcluster_bits) + 1 << geometry.subcluster_bits)
            piece_end = min(end, border)
            host = -1 if entry.host < 0 else entry.host + inside
            _append(result, Piece(kind, offset, piece_end - offset, host))
            offset = piece_end
        return end

    async def read(self, offset: int, iov: IoVec) -> None:
        """Read any guest range."""
        found = await self.pieces(offset, iov.nbytes)
        if len(found) == 1:
            await self._read_piece(found[0], iov)
            return
        await run_all(
            [
                self._read_piece(
                    piece, iov.slice(piece.offset - offset, piece.offset - offset + piece.length)
                )
                for piece in found
            ]
        )

    def _read_piece(self, piece: Piece, iov: IoVec) -> Coroutine[Any, Any, None]:
        image = self._image
        if piece.kind is Kind.DATA:
            return image.guest_data.read(piece.host, iov)
        if piece.kind is Kind.COMPRESSED:
            return self._read_compressed(piece, iov)
        if piece.kind is Kind.UNALLOCATED and image.backing is not None:
            return image.backing.preadv(piece.offset, iov)
        return _fill(iov)

    async def _read_compressed(self, piece: Piece, iov: IoVec) -> None:
        image = self._image
        size = image.geometry.cluster_size
        kept = self._kept
        data = kept.get(piece.host)
        if data is None:
            offset, length = image.geometry.compressed_range(piece.host)
            packed = await read_bytes(image.file, offset, length)
            data = await image.in_thread(
                lambda: compressed.decompress(image.header.compression_type, packed, size)
            )
            while len(kept) >= _KEPT_CLUSTERS:
                del kept[next(iter(kept))]
            kept[piece.host] = data
        inside = piece.offset & (size - 1)
        iov.copy_from(memoryview(data)[inside : inside + piece.length])

    def forget_compressed(self) -> None:
        """Drop decompressed clusters: their space in the file may be reused."""
        self._kept = {}  # those in flight still have the old one


async def _fill(iov: IoVec) -> None:
    iov.fill(0)


def _append(result: list[Piece], piece: Piece) -> None:
    """Add a piece, or extend the last one."""
    if result:
        last = result[-1]
        goes_on = last.host + last.length == piece.host if last.host >= 0 else piece.host < 0
        if last.kind is piece.kind and goes_on:
            result[-1] = last._replace(length=last.length + piece.length)
            return
    result.append(piece)


def _invalid(entry: Entry, version: int) -> str:
    if entry.compressed:
        return "Compressed cluster entry found in image with external data file "
    if version < 3:
        return "Zero cluster entry found in pre-v3 image "
    return "Invalid cluster entry found  "
