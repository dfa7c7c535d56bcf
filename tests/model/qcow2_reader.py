# SPDX-License-Identifier: Apache-2.0
"""Reads and checks qcow2 images, by the specification (`docs/interop/qcow2.txt`) alone.

It shares no code with the driver, takes no locks and starts no programs, so it is fast enough for
thousands of states of an image. `test_judges.py` compares it with `qemu-img`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEADER = struct.Struct(">IIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_BITMAP = struct.Struct(">QIIBBHI")

_MAGIC = 0x5146_49FB
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED = 1, 2, 4, 8, 16
_KNOWN = 31
_BITMAPS_EXTENSION = 0x2385_2875
_COPIED, _COMPRESSED = 1 << 63, 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_SUBCLUSTERS = 32


class ImageError(AssertionError):
    """The image is invalid."""


@dataclass
class Snapshot:
    """An internal snapshot; sizes in bytes."""

    id: str
    name: str
    l1_offset: int
    l1_size: int
    disk_size: int


@dataclass
class Bitmap:
    """A dirty bitmap; `bits` has one byte for each granule, and is None if marked "in use"."""

    name: str
    granularity: int
    enabled: bool
    bits: NDArray[np.uint8] | None


@dataclass
class Findings:
    """The results of a check."""

    #: Invalid offsets, and the like.
    corruptions: list[str] = field(default_factory=list)
    #: Refcounts that are too low. A dirty image may have some.
    low: list[str] = field(default_factory=list)
    #: "Copied" flags of clusters with several references: a write changes what the others show.
    shared: list[str] = field(default_factory=list)
    #: "Copied" flags that don't match the refcount.
    copied: list[str] = field(default_factory=list)
    #: Clusters with a refcount that is too high.
    leaks: list[int] = field(default_factory=list)


class Image:
    """A qcow2 image, as the bytes of its file; `data` is an external data file."""

    def __init__(
        self, file: bytes | NDArray[np.uint8], data: NDArray[np.uint8] | None = None
    ) -> None:
        head = bytes(file[:112])
        if len(head) < 112:
            raise ImageError("no qcow2 image: too short")
        fields = _HEADER.unpack_from(head)
        if fields[0] != _MAGIC:
            raise ImageError("no qcow2 image")
        (_, self.version, self.backing_offset, self.backing_length, self.bits, self.size, _,
         self.l1_size, self.l1_offset, self.reftable_offset, self.reftable_clusters,
         self.snapshot_count, self.snapshots_offset) = fields  # fmt: skip
        self.incompatible = self.autoclear = 0
        order, self.header_length, self.zstd = 4, 72, False
        if self.version >= 3:
            self.incompatible, _, self.autoclear, order, self.header_length = _HEADER_3.unpack_from(
                head, _HEADER.size
            )
            if self.incompatible & ~_KNOWN:
                raise ImageError(f"unknown features {self.incompatible:#x}")
            self.zstd = bool(self.incompatible & _COMPRESSION) and head[104] == 1
        self.refcount_order = order
        self.cluster = 1 << self.bits
        self.extended = bool(self.incompatible & _EXTENDED)
        self.external = bool(self.incompatible & _DATA_FILE)
        #: The whole file, up to the end of its last cluster.
        self.file = self._padded(np.frombuffer(file, np.uint8), 0)
        self.data = self.file
        if self.external:
            self.data = self._padded(np.zeros(0, np.uint8) if data is None else data, self.size)
        self.extensions = self._read_extensions()
        self.snapshots = self._read_snapshots()

    def _padded(self, content: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
        """Return content padded to whole clusters, and to `least` bytes at least."""
        size = -(-max(len(content), least) // self.cluster) * self.cluster
        if size == len(content):
            return content
        padded = np.zeros(size, np.uint8)
        padded[: len(content)] = content
        return padded

    # Header.

    @property
    def dirty(self) -> bool:
        """Whether refcounts may be wrong."""
        return bool(self.incompatible & _DIRTY)

    @property
    def corrupt(self) -> bool:
        """Whether the image was marked corrupt."""
        return bool(self.incompatible & _CORRUPT)

    @property
    def backing_name(self) -> str:
        """The name of the backing file; empty: there is none."""
        if not self.backing_offset:
            return ""
        return self._bytes(self.backing_offset, self.backing_length).decode()

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.file):
            raise ImageError(f"{length} bytes at {offset:#x} are past the end of the file")
        return self.file[offset : offset + length].tobytes()

    def _numbers(self, offset: int, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._bytes(offset, 8 * count), ">u8").astype(np.uint64)

    def _read_extensions(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        place = self.header_length
        while place + 8 <= self.cluster:
            kind, length = struct.unpack(">II", self._bytes(place, 8))
            if not kind:
                break
            found[kind] = self._bytes(place + 8, length)
            place += 8 + -(-length // 8) * 8
        return found

    def _read_snapshots(self) -> list[Snapshot]:
        found: list[Snapshot] = []
        place = self.snapshots_offset
        for _ in range(self.snapshot_count):
            l1_offset, l1_size, id_size, name_size, _, _, _, _, extra_size = _SNAPSHOT.unpack(
                self._bytes(place, _SNAPSHOT.size)
            )
            place += _SNAPSHOT.size
            extra = self._bytes(place, extra_size)
            size = int.from_bytes(extra[8:16], "big") if extra_size >= 16 else self.size
            place += extra_size
            number = self._bytes(place, id_size).decode()
            name = self._bytes(place + id_size, name_size).decode()
            found.append(Snapshot(number, name, l1_offset, l1_size, size))
            place = -(-(place + id_size + name_size) // 8) * 8
        return found

    # Content.

    def _entries(self, l1_offset: int, l1_size: int, size: int) -> NDArray[np.uint64]:
        """Return the L2 entries of a disk, shape (clusters, words)."""
        words = 2 if self.extended else 1
        per_table = self.cluster // (8 * words)
        clusters = -(-size // self.cluster)
        tables = -(-clusters // per_table)
        if tables > l1_size:
            raise ImageError(f"an L1 table of {l1_size} entries for {size} bytes")
        found = np.zeros((tables * per_table, words), np.uint64)
        for index, entry in enumerate(self._numbers(l1_offset, tables).tolist()):
            if entry & _OFFSET:
                table = self._numbers(entry & _OFFSET, per_table * words)
                found[index * per_table : (index + 1) * per_table] = table.reshape(-1, words)
        return found[:clusters]

    def content(
        self, backing: NDArray[np.uint8] | None = None, snapshot: Snapshot | None = None
    ) -> NDArray[np.uint8]:
        """Return the content of the disk; `backing`: the content of its backing file."""
        l1_offset, l1_size, size = self.l1_offset, self.l1_size, self.size
        if snapshot is not None:
            l1_offset, l1_size = snapshot.l1_offset, snapshot.l1_size
            size = snapshot.disk_size
        entries = self._entries(l1_offset, l1_size, size)
        per_cluster = _SUBCLUSTERS if self.extended else 1
        unit = self.cluster // per_cluster
        result = np.zeros((len(entries) * per_cluster, unit), np.uint8)
        if backing is not None:
            inside = min(len(backing), result.size)
            result.reshape(-1)[:inside] = backing[:inside]
        data, zero, hosts = self._state(entries)
        result[zero] = 0
        places = hosts[data] // unit
        units = self.data.reshape(-1, unit)
        if len(places) and int(places.max()) >= len(units):
            raise ImageError(f"data at {int(places.max()) * unit:#x}, past the end of the file")
        result[data] = units[places]
        for index in np.flatnonzero(entries[:, 0] & np.uint64(_COMPRESSED)).tolist():
            whole = np.frombuffer(self._decompress(int(entries[index, 0])), np.uint8)
            result[index * per_cluster : (index + 1) * per_cluster] = whole.reshape(-1, unit)
        return result.reshape(-1)[:size]

    def _state(
        self, entries: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Return, for each (sub)cluster, whether it has data, whether it is zero, and its place."""
        words = entries[:, 0]
        packed = (words & np.uint64(_COMPRESSED)) != 0
        hosts = (words & np.uint64(_OFFSET)).astype(np.int64)
        there = hosts != 0
        if self.external:
            there |= (words & np.uint64(_COPIED)) != 0
        there &= ~packed
        if not self.extended:
            zero = (words & np.uint64(1)).astype(np.bool_) & ~packed & (self.version >= 3)
            return there & ~zero, zero, hosts
        numbers = np.arange(_SUBCLUSTERS, dtype=np.uint64)
        bitmap = entries[:, 1]
        alloc = (bitmap[:, None] >> numbers & np.uint64(1)).astype(np.bool_) & there[:, None]
        zeroes = (bitmap[:, None] >> (numbers + np.uint64(32)) & np.uint64(1)).astype(np.bool_)
        zeroes &= ~packed[:, None]
        if (alloc & zeroes).any():
            raise ImageError("a subcluster that is allocated and zero")
        unit = self.cluster // _SUBCLUSTERS
        places = hosts[:, None] + np.arange(_SUBCLUSTERS, dtype=np.int64) * unit
        return alloc.reshape(-1), zeroes.reshape(-1), places.reshape(-1)

    def _packed_range(self, entry: int) -> tuple[int, int]:
        shift = 62 - (self.bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry >> shift & ((1 << self.bits - 8) - 1)) + 1
        return offset, sectors * 512 - (offset & 511)

    def _decompress(self, entry: int) -> bytes:
        offset, length = self._packed_range(entry)
        raw = self.file[offset : offset + length].tobytes()
        if self.zstd:
            import zstandard

            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            data = bytes(reader.read(self.cluster))
        else:
            data = zlib.decompressobj(-15).decompress(raw, self.cluster)
        if len(data) != self.cluster:
            raise ImageError(f"a compressed cluster at {offset:#x} is too short")
        return data

    # Bitmaps.

    def bitmaps(self) -> list[Bitmap]:
        """Return the dirty bitmaps in the image, if their extension is valid."""
        extension = self.extensions.get(_BITMAPS_EXTENSION)
        if extension is None or not self.autoclear & 1:
            return []
        count, _, size, offset = struct.unpack(">IIQQ", extension)
        found: list[Bitmap] = []
        place = offset
        for _ in range(count):
            table_offset, table_size, flags, _, granularity_bits, name_size, extra = _BITMAP.unpack(
                self._bytes(place, _BITMAP.size)
            )
            name = self._bytes(place + _BITMAP.size + extra, name_size).decode()
            place = -(-(place + _BITMAP.size + extra + name_size) // 8) * 8
            granules = -(-self.size >> granularity_bits)
            bits = None
            if not flags & 1:
                bits = self._bitmap_bits(self._numbers(table_offset, table_size))[:granules]
            found.append(Bitmap(name, 1 << granularity_bits, bool(flags & 2), bits))
        if place > offset + size:
            raise ImageError("the bitmap directory is longer than it says")
        return found

    def _bitmap_bits(self, table: NDArray[np.uint64]) -> NDArray[np.uint8]:
        parts = []
        for entry in table.tolist():
            if entry & _OFFSET:
                raw = self.file[entry & _OFFSET :][: self.cluster]
            else:
                raw = np.full(self.cluster, 255 if entry & 1 else 0, np.uint8)
            parts.append(np.unpackbits(raw, bitorder="little"))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    # Checking.

    def check(self) -> Findings:
        """Count references, and compare."""
        return _Check(self).run()

    def refcounts(self) -> NDArray[np.int64]:
        """Return the refcount of every cluster of the file."""
        clusters = len(self.file) >> self.bits
        order, per_block = self.refcount_order, self.cluster * 8 >> self.refcount_order
        table = self._numbers(self.reftable_offset, self.reftable_clusters * self.cluster // 8)
        counts = np.zeros(max(clusters, 1), np.int64)
        for index in np.flatnonzero(table).tolist():
            raw = self.file[int(table[index]) :][: self.cluster]
            if len(raw) < self.cluster:
                raise ImageError("a refcount block is past the end of the file")
            if order >= 3:
                values = raw.view(f">u{1 << order >> 3}").astype(np.int64)
            else:
                width = 1 << order
                shifts = np.arange(0, 8, width, dtype=np.uint8)
                values = (raw[:, None] >> shifts & ((1 << width) - 1)).reshape(-1).astype(np.int64)
            low = index * per_block
            if low + per_block > clusters and values[max(clusters - low, 0) :].any():
                more = low + int(np.flatnonzero(values)[-1]) + 1 - len(counts)
                counts = np.concatenate([counts, np.zeros(max(more, 0), np.int64)])
            part = counts[low : low + per_block]
            part += values[: len(part)]
        return counts


class _Check:
    """One check: counts the references to each cluster, and compares them with the refcounts."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._findings = Findings()
        self._clusters = len(image.file) >> image.bits
        self._references = np.zeros(self._clusters, np.int64)
        self._copied: list[tuple[str, NDArray[np.uint64], NDArray[np.int64]]] = []

    def run(self) -> Findings:
        image, findings = self._image, self._findings
        self._add("the header", 0, image.cluster)
        table_bytes = image.reftable_clusters * image.cluster
        self._add("the refcount table", image.reftable_offset, table_bytes)
        table = image._numbers(image.reftable_offset, table_bytes // 8)
        blocks = table[table != 0].astype(np.int64)
        self._add_clusters("refcount blocks", blocks)
        self._add_tables("the disk", image.l1_offset, image.l1_size, active=True)
        for each in image.snapshots:
            self._add_tables(f"snapshot {each.name}", each.l1_offset, each.l1_size, active=False)
        if image.snapshots:
            self._add("the snapshot table", image.snapshots_offset, self._snapshot_bytes())
        self._add_bitmaps()
        if not findings.corruptions:
            self._compare(image.refcounts())
        return findings

    def _snapshot_bytes(self) -> int:
        image = self._image
        place: int = image.snapshots_offset
        for _ in image.snapshots:
            fields: tuple[int, ...] = _SNAPSHOT.unpack(image._bytes(place, _SNAPSHOT.size))
            length = _SNAPSHOT.size + fields[2] + fields[3] + fields[8]
            end = place + length
            place = -(-end // 8) * 8
        return place - int(image.snapshots_offset)

    def _wrong(self, text: str) -> None:
        self._findings.corruptions.append(text)

    def _add(self, what: str, offset: int, length: int) -> None:
        """Count a reference to each cluster of a range."""
        bits = self._image.bits
        if length and offset + length - 1 >> bits >= self._clusters:
            self._wrong(f"{what} at {offset:#x} is past the end of the file")
            return
        if length:
            self._references[offset >> bits : (offset + length - 1 >> bits) + 1] += 1

    def _add_clusters(self, what: str, offsets: NDArray[np.int64]) -> None:
        """Count a reference to each cluster at these offsets."""
        image = self._image
        if (offsets & (image.cluster - 1)).any():
            self._wrong(f"{what}: an offset is not that of a cluster")
            return
        numbers = offsets >> image.bits
        if (numbers >= self._clusters).any():
            self._wrong(
                f"{what} at {int(numbers.max()) << image.bits:#x}: past the end of the file"
            )
            return
        np.add.at(self._references, numbers, 1)

    def _add_tables(self, what: str, l1_offset: int, l1_size: int, *, active: bool) -> None:
        image = self._image
        self._add(f"the L1 table of {what}", l1_offset, 8 * l1_size)
        l1 = image._numbers(l1_offset, l1_size)
        l1 = l1[(l1 & np.uint64(_OFFSET)) != 0]
        offsets = (l1 & np.uint64(_OFFSET)).astype(np.int64)
        self._add_clusters(f"L2 tables of {what}", offsets)
        if self._findings.corruptions:
            return
        if active:
            self._copied.append(("an L1 entry", l1, offsets >> image.bits))
        words = 2 if image.extended else 1
        for offset in offsets.tolist():
            table = image._numbers(offset, image.cluster // 8).reshape(-1, words)
            self._add_entries(what, table[:, 0], active=active)

    def _add_entries(self, what: str, words: NDArray[np.uint64], *, active: bool) -> None:
        image = self._image
        packed = (words & np.uint64(_COMPRESSED)) != 0
        for entry in words[packed].tolist():
            if entry & _COPIED:
                self._findings.copied.append(f"{what}: a compressed cluster is flagged as copied")
            offset, length = image._packed_range(entry)
            self._add(f"compressed data of {what}", offset, length)
        if image.external:
            return
        plain = words[~packed & ((words & np.uint64(_OFFSET)) != 0)]
        offsets = (plain & np.uint64(_OFFSET)).astype(np.int64)
        self._add_clusters(f"data of {what}", offsets)
        if active and not self._findings.corruptions:
            self._copied.append(("an L2 entry", plain, offsets >> image.bits))

    def _add_bitmaps(self) -> None:
        image = self._image
        extension = image.extensions.get(_BITMAPS_EXTENSION)
        if extension is None or not image.autoclear & 1:
            return
        count, _, size, offset = struct.unpack(">IIQQ", extension)
        self._add("the bitmap directory", offset, size)
        place = offset
        for _ in range(count):
            fields = _BITMAP.unpack(image._bytes(place, _BITMAP.size))
            table = image._numbers(fields[0], fields[1])
            self._add("a bitmap's table", fields[0], 8 * fields[1])
            offsets = (table & np.uint64(_OFFSET)).astype(np.int64)
            self._add_clusters("a bitmap", offsets[offsets != 0])
            place = -(-(place + _BITMAP.size + fields[6] + fields[5]) // 8) * 8

    def _compare(self, counts: NDArray[np.int64]) -> None:
        references = np.zeros(len(counts), np.int64)
        references[: self._clusters] = self._references
        low = np.flatnonzero(counts < references)
        for cluster in low.tolist()[:10]:
            self._findings.low.append(
                f"cluster {cluster} has {references[cluster]} references, count {counts[cluster]}"
            )
        self._findings.leaks = np.flatnonzero(counts > references).tolist()
        for what, words, clusters in self._copied:
            flagged: Any = (words & np.uint64(_COPIED)) != 0
            for cluster in clusters[flagged & (references[clusters] > 1)].tolist()[:10]:
                self._findings.shared.append(f"{what} to cluster {cluster}")
            for cluster in clusters[flagged != (counts[clusters] == 1)].tolist()[:10]:
                self._findings.copied.append(
                    f"{what} to cluster {cluster}: wrong flag for refcount {counts[cluster]}"
                )
