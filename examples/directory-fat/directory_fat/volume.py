# SPDX-License-Identifier: Apache-2.0
"""Which byte of the disk is which byte of what.

Clusters are dealt out one after the other, directories first, so that every chain is a run. The
tables then need not be stored: an entry is the next number, unless a run ends there.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from directory_fat import layout, names
from directory_fat.layout import ENTRY, FATS, SECTOR, Geometry
from directory_fat.tree import Directory, File, Tree, shown
from vhostblk.plugin import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Cluster sizes of FAT16, and of FAT32 by the size of the data.
_CLUSTERS_16 = (2048, 4096, 8192, 16384, 32768)
_CLUSTERS_32 = ((8 << 30, 4096), (16 << 30, 8192), (32 << 30, 16384), (1 << 62, 32768))
_ROOT_ENTRIES = 512
_MAX_DIRECTORY = 65536 * ENTRY
_MAX_ROOT_ENTRIES = 65520


@dataclass
class Run:
    """Consecutive clusters: of a file, or of a directory, whose bytes are at hand."""

    first: int
    count: int
    content: File | bytes


class Volume:
    """The bytes of a FAT volume of a tree; raises DriverError where it has no room for it."""

    def __init__(self, tree: Tree, root: Directory, *, is_32: bool | None, label: str) -> None:
        self._tree = tree
        self._root = root
        self._label = _check_label(label)
        self._short: dict[tuple[str, ...], dict[str, bytes]] = {}
        self._directories = list(_directories(root))
        self._lengths = {d.path: self._directory_length(d) for d in self._directories}
        self.geometry = self._choose(is_32)
        self._runs: list[Run] = []
        self._first: dict[tuple[str, ...], int] = {}
        self._deal_out()
        self._starts = [run.first for run in self._runs]
        self._ends = np.array([run.first + run.count - 1 for run in self._runs], np.int64)
        self._used = int(self._ends[-1]) - 1 if self._runs else 0
        self._reserved = layout.reserved_sectors(self.geometry, self._used)
        self._root_bytes = b"" if self.geometry.is_32 else self._directory_bytes(root)

    # Making it.

    def _directory_length(self, directory: Directory) -> int:
        """Return the bytes of a directory; checks its names."""
        members = [member.path[-1] for member in directory.members]
        try:
            for name in members:
                names.encode(name)
            short = self._short[directory.path] = names.short_names(members)
        except DriverError as error:
            where = f" (in '{shown(directory.path)}')" if directory.path else ""
            raise DriverError(f"{error}{where}") from None
        length = sum(len(names.long_entries(name, short[name])) + ENTRY for name in members)
        length += 2 * ENTRY if directory.path else ENTRY  # "." and "..", or the label
        if length > _MAX_DIRECTORY:
            raise DriverError(f"'{shown(directory.path)}' has more files than a FAT directory may")
        return length

    def _choose(self, is_32: bool | None) -> Geometry:
        sizes = [m.size for d in self._directories for m in d.members if isinstance(m, File)]
        sizes += [length for path, length in self._lengths.items() if path]
        root_length = self._lengths[()]
        serial = zlib.crc32(self._label + repr((self._root.mtime, len(sizes))).encode())

        def count(cluster: int) -> int:
            return sum(-(-size // cluster) for size in sizes)

        if is_32 is not True:
            entries = max(_ROOT_ENTRIES, -(-root_length // SECTOR) * (SECTOR // ENTRY))
            for cluster in _CLUSTERS_16:
                if count(cluster) <= layout.MAX_CLUSTERS_16 and entries <= _MAX_ROOT_ENTRIES:
                    clusters = max(count(cluster), layout.MIN_CLUSTERS_16)
                    return Geometry(False, cluster, clusters, entries, self._label, serial)
            if is_32 is False:
                raise DriverError("The directory is too large for FAT16")
        cluster = next(size for limit, size in _CLUSTERS_32 if sum(sizes) <= limit)
        used = count(cluster) + -(-root_length // cluster)
        clusters = max(used, layout.MIN_CLUSTERS_32)
        geometry = Geometry(True, cluster, clusters, 0, self._label, serial)
        if clusters > layout.MAX_CLUSTERS_32 or geometry.size // SECTOR >= 1 << 32:
            raise DriverError("The directory is too large for FAT32")
        return geometry

    def _deal_out(self) -> None:
        """Give clusters to all directories and files; then directories can be written down."""
        size, following = self.geometry.cluster, 2
        for directory in self._directories:
            if directory.path or self.geometry.is_32:
                count = -(-self._lengths[directory.path] // size)
                self._first[directory.path] = following
                self._runs.append(Run(following, count, b""))
                following += count
        for directory in self._directories:
            for file in directory.members:
                if isinstance(file, File) and file.size:
                    count = -(-file.size // size)
                    self._first[file.path] = following
                    self._runs.append(Run(following, count, file))
                    following += count
        held = [d for d in self._directories if d.path or self.geometry.is_32]
        for run, directory in zip(self._runs, held, strict=False):
            run.content = self._directory_bytes(directory)

    def _directory_bytes(self, directory: Directory) -> bytes:
        entry, made = layout.directory_entry, []
        if directory.path:
            above = self._first[directory.path[:-1]] if len(directory.path) > 1 else 0
            own = self._first[directory.path]
            made.append(entry(b".          ", layout.ATTR_DIRECTORY, own, 0, directory.mtime))
            made.append(entry(b"..         ", layout.ATTR_DIRECTORY, above, 0, directory.mtime))
        else:
            made.append(entry(self._label, layout.ATTR_VOLUME, mtime=directory.mtime))
        for member in directory.members:
            name = member.path[-1]
            short = self._short[directory.path][name]
            made.append(names.long_entries(name, short))
            first = self._first.get(member.path, 0)
            if isinstance(member, File):
                made.append(entry(short, layout.ATTR_ARCHIVE, first, member.size, member.mtime))
            else:
                made.append(entry(short, layout.ATTR_DIRECTORY, first, 0, member.mtime))
        return b"".join(made)

    # Reading it.

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk, inside its size; raises OSError where a file can't be read."""
        geometry = self.geometry
        areas = [(0, geometry.reserved, self._read_reserved)]
        for number in range(FATS):
            start = geometry.reserved + number * geometry.fat_bytes
            areas.append((start, start + geometry.fat_bytes, self._read_fat))
        areas.append((geometry.root_start, geometry.data_start, self._read_root))
        areas.append((geometry.data_start, geometry.size, self._read_data))
        parts = []
        for start, stop, read in areas:
            low, high = max(offset, start), min(offset + length, stop)
            if low < high:
                parts.append(read(low - start, high - low))
        return b"".join(parts)

    def _read_reserved(self, offset: int, length: int) -> bytes:
        return self._reserved[offset : offset + length]

    def _read_root(self, offset: int, length: int) -> bytes:
        return self._root_bytes[offset : offset + length].ljust(length, b"\0")

    def _read_fat(self, offset: int, length: int) -> bytes:
        width, last = (4, 0x0FFF_FFFF) if self.geometry.is_32 else (2, 0xFFFF)
        low, high = offset // width, -(-(offset + length) // width)
        entries = np.arange(low + 1, high + 1, dtype=np.int64)
        begin, end = np.searchsorted(self._ends, [low, high])
        entries[self._ends[begin:end] - low] = last
        entries[max(self._used + 2 - low, 0) :] = 0
        if low < 2:
            entries[:2][: 2 - low] = np.array([last & ~7, last])[low : low + len(entries)]
        data = entries.astype("<u4" if width == 4 else "<u2").tobytes()
        skip = offset - low * width
        return data[skip : skip + length]

    def _read_data(self, offset: int, length: int) -> bytes:
        parts = []
        size = self.geometry.cluster
        while length:
            index = bisect_right(self._starts, offset // size + 2) - 1
            part = bytes(length)  # past the last run
            if index >= 0:
                run = self._runs[index]
                begin = offset - (run.first - 2) * size
                part = self._read_run(run, begin, min(length, run.count * size - begin))
            part = part or bytes(length)
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _read_run(self, run: Run, begin: int, length: int) -> bytes:
        """Return bytes of a run, zeroes behind its content; nothing past its end."""
        if length <= 0:
            return b""
        if isinstance(run.content, bytes):
            return run.content[begin : begin + length].ljust(length, b"\0")
        inside = min(length, run.content.size - begin)
        data = self._tree.read(run.content, begin, inside) if inside > 0 else b""
        return data.ljust(length, b"\0")


def _directories(root: Directory) -> Iterator[Directory]:
    pending = [root]
    while pending:
        directory = pending.pop()
        yield directory
        pending += [
            member for member in reversed(directory.members) if isinstance(member, Directory)
        ]


def _check_label(label: str) -> bytes:
    encoded = label.upper().encode("ascii", "replace")
    if not 0 < len(encoded) <= 11 or names.FORBIDDEN.search(label) or b"?" in encoded:
        raise DriverError(f"label '{label}' is not 1 to 11 characters that FAT allows")
    return encoded.ljust(11)
