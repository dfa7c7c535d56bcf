# SPDX-License-Identifier: Apache-2.0
"""A plain reader of qcow2 images in memory, written from the specification only.

It checks hundreds of states of a file, for which starting `qemu-img` takes too long. It finds
dangerous faults: missing data, and data that a writer who trusts the image would overwrite. Leaked
clusters are not reported.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_COPIED, _COMPRESSED, _OFFSET = 1 << 63, 1 << 62, 0x00FF_FFFF_FFFF_FE00
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQIIB")
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_BITMAPS = 0x2385_2875
_DIRTY, _EXTENDED = 1, 16


class _Use(NamedTuple):
    """A reference of the image to clusters [first, last)."""

    what: str
    first: int
    last: int


class PlainImage:
    """An image; `problems` has all faults that were found."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        magic, version, _, _, bits, self.size, _, *tables = _HEADER.unpack_from(data)
        assert magic == b"QFI\xfb"
        l1_size, l1_offset, reftable, reftable_clusters, snapshots, self._snapshots_at = tables
        self._version, self._bits = version, bits
        self._cluster = 1 << bits
        self._incompatible, autoclear, order, length, self._zstd = 0, 0, 4, 72, False
        if version >= 3:
            self._incompatible, _, autoclear, order, length, kind = _V3.unpack_from(data, 72)
            self._zstd = bool(length > 104 and kind)
        self._extended = bool(self._incompatible & _EXTENDED)
        #: The offset of the refcount table.
        self.reftable = reftable
        self.problems: list[str] = []
        self._references = np.zeros(len(data) // self._cluster + 2, np.int64)
        self._refcounts = np.zeros_like(self._references)
        self._read_refcounts(reftable, reftable_clusters, order)
        self._use(_Use("header", 0, 1))
        self.l1 = self._table(l1_offset, l1_size)
        self._use(self._span("L1 table", l1_offset, 8 * l1_size))
        self._use_tree("active", self.l1)
        #: L1 tables of snapshots, by name.
        self.snapshots: dict[str, NDArray[np.uint64]] = {}
        for name, offset, entries in self._snapshot_entries(snapshots):
            self._use(self._span(f"L1 table of {name}", offset, 8 * entries))
            self.snapshots[name] = self._table(offset, entries)
            self._use_tree(name, self.snapshots[name])
        if autoclear & 1:
            self._use_bitmaps(length)
        self._judge()

    # The file.

    def _bytes(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length].ljust(length, b"\0")

    def _table(self, offset: int, entries: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._bytes(offset, 8 * entries), ">u8").astype(np.uint64)

    def _span(self, what: str, offset: int, length: int) -> _Use:
        if offset & (self._cluster - 1):
            self.problems.append(f"{what} at {offset:#x}")
        first = offset >> self._bits
        return _Use(what, first, first + -(-length >> self._bits))

    # References.

    def _use(self, use: _Use) -> None:
        if use.last > len(self._references):
            self.problems.append(f"{use.what} at cluster {use.first} of {len(self._references)}")
            return
        self._references[use.first : use.last] += 1

    def _read_refcounts(self, offset: int, clusters: int, order: int) -> None:
        self._use(self._span("refcount table", offset, clusters << self._bits))
        per_block = self._cluster * 8 >> order
        for index, at in enumerate(self._table(offset, clusters * self._cluster // 8).tolist()):
            if not at:
                continue
            self._use(self._span("refcount block", at, self._cluster))
            raw = np.frombuffer(self._bytes(at, self._cluster), np.uint8)
            if order >= 3:
                counts: NDArray[Any] = raw.view(f">u{1 << order - 3}").astype(np.int64)
            else:
                width = 1 << order
                each = np.unpackbits(raw, bitorder="little").reshape(-1, width)
                counts = (each << np.arange(width)).sum(axis=1)
            part = self._refcounts[index * per_block : (index + 1) * per_block]
            part[:] = counts[: len(part)]

    def _use_tree(self, name: str, l1: NDArray[np.uint64]) -> None:
        for entry in l1.tolist():
            if not entry & _OFFSET:
                continue
            self._use(self._span(f"L2 table of {name}", entry & _OFFSET, self._cluster))
            for _, word, _ in self._l2_entries(entry):
                if word & _COMPRESSED:
                    offset, length = self._compressed_range(word)
                    last = (offset + length - 1 >> self._bits) + 1
                    self._use(_Use(f"compressed data of {name}", offset >> self._bits, last))
                elif word & _OFFSET:
                    self._use(self._span(f"data of {name}", word & _OFFSET, self._cluster))

    def _l2_entries(self, entry: int) -> Iterator[tuple[int, int, int]]:
        """Yield the entries of an L2 table: index, word, bitmap."""
        words = self._table(entry & _OFFSET, self._cluster // 8)
        rows = words.reshape(-1, 2 if self._extended else 1)
        for place in np.flatnonzero(rows.any(axis=1)).tolist():
            word, *bitmap = rows[place].tolist()
            yield place, word, bitmap[0] if bitmap else 0

    def _compressed_range(self, word: int) -> tuple[int, int]:
        shift = 62 - (self._bits - 8)
        offset, sectors = word & ((1 << shift) - 1), (word & (_COMPRESSED - 1)) >> shift
        return offset, (sectors + 1) * 512 - offset % 512

    def _snapshot_entries(self, count: int) -> Iterator[tuple[str, int, int]]:
        """Yield the name of each snapshot, and the offset and length of its L1 table."""
        start = position = self._snapshots_at
        for _ in range(count):
            position = -(-position // 8) * 8
            raw = _SNAPSHOT.unpack_from(self._bytes(position, _SNAPSHOT.size))
            position += _SNAPSHOT.size + raw[8] + raw[2]
            name = self._bytes(position, raw[3]).decode(errors="replace")
            position += raw[3]
            yield name, raw[0], raw[1]
        if count:
            self._use(self._span("snapshot table", start, position - start))

    def _use_bitmaps(self, position: int) -> None:
        while True:
            magic, length = struct.unpack_from(">II", self._data, position)
            if not magic:
                return
            if magic == _BITMAPS:
                break
            position += 8 + -(-length // 8) * 8
        count, _, size, offset = struct.unpack_from(">IIQQ", self._data, position + 8)
        self._use(self._span("bitmap directory", offset, size))
        position = offset
        for _ in range(count):
            table, entries, _, _, _, name, extra = struct.unpack_from(
                ">QIIBBHI", self._bytes(position, 24)
            )
            position += -(-(24 + extra + name) // 8) * 8
            self._use(self._span("bitmap table", table, 8 * entries))
            for entry in self._table(table, entries).tolist():
                if entry & _OFFSET:
                    self._use(self._span("bitmap", entry & _OFFSET, self._cluster))

    def _judge(self) -> None:
        references = self._references
        if not self._incompatible & _DIRTY:
            for cluster in np.flatnonzero(self._refcounts < references).tolist():
                self.problems.append(
                    f"cluster {cluster:#x} is referred to {references[cluster]} times, and its "
                    f"refcount is {self._refcounts[cluster]}"
                )
        for index, entry in enumerate(self.l1.tolist()):
            if not entry & _OFFSET:
                continue
            self._judge_copied(f"L1 entry {index}", entry)
            for place, word, _ in self._l2_entries(entry):
                if not word & _COMPRESSED:
                    self._judge_copied(f"L2 entry {index}/{place}", word)

    def _judge_copied(self, what: str, word: int) -> None:
        cluster = (word & _OFFSET) >> self._bits
        if word & _COPIED and cluster < len(self._references) and self._references[cluster] > 1:
            self.problems.append(f"{what} may be written in place, and is referred to by others")

    # Content of the disk.

    def content(self, backing: bytes = b"", snapshot: str | None = None) -> bytes:
        """Return the content of the disk, or of a snapshot; `backing`: the backing file's."""
        disk = bytearray(backing[: self.size].ljust(self.size, b"\0"))
        per_table = self._cluster // (16 if self._extended else 8)
        l1 = self.l1 if snapshot is None else self.snapshots[snapshot]
        for index, entry in enumerate(l1.tolist()):
            if not entry & _OFFSET:
                continue
            for place, word, bitmap in self._l2_entries(entry):
                start = (index * per_table + place) << self._bits
                if start < self.size:
                    self._read_cluster(disk, start, word, bitmap)
        return bytes(disk[: self.size])

    def _read_cluster(self, disk: bytearray, start: int, word: int, bitmap: int) -> None:
        size, at = self._cluster, word & _OFFSET
        if word & _COMPRESSED:
            disk[start : start + size] = self._decompress(word)
        elif self._extended:
            part = size // 32
            for number in range(32):
                low = start + number * part
                if bitmap >> number & 1:
                    disk[low : low + part] = self._bytes(at + number * part, part)
                elif bitmap >> 32 + number & 1:
                    disk[low : low + part] = bytes(part)
        elif word & 1 and self._version >= 3:
            disk[start : start + size] = bytes(size)
        elif at:
            disk[start : start + size] = self._bytes(at, size)

    def _decompress(self, word: int) -> bytes:
        packed = self._bytes(*self._compressed_range(word))
        try:
            if self._zstd:
                import zstandard

                decompressor = zstandard.ZstdDecompressor()
                return decompressor.stream_reader(packed).read(self._cluster)
            return zlib.decompressobj(-15).decompress(packed, self._cluster)
        except Exception as error:
            self.problems.append(f"compressed data at {word & (_COMPRESSED - 1):#x}: {error}")
            return bytes(self._cluster)
