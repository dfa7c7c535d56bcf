# SPDX-License-Identifier: Apache-2.0
"""Small images whose tables claim to be large, or lead to places that are far apart.

QEMU opens all of them. Opening, checking and repairing them must not take memory, time or storage
out of proportion.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2.bitmaps import Bitmap, encode_directory
from vhostblk.block.drivers.qcow2.header import BitmapsExtension, Header, encode
from vhostblk.block.drivers.qcow2.layout import (
    BITMAP_IN_USE,
    COPIED,
    MAX_L1_BYTES,
    MAX_REFTABLE_BYTES,
    Autoclear,
    Geometry,
    Incompatible,
)
from vhostblk.block.drivers.qcow2.snapshots import Snapshot, encode_table

if TYPE_CHECKING:
    from collections.abc import Callable

_L1_ENTRIES = MAX_L1_BYTES // 8


@dataclass
class _Image:
    """An image in the making: what is in its first clusters."""

    cluster_bits: int = 9
    #: Of the disk.
    size: int = 1 << 20
    l1: list[int] = field(default_factory=list)
    snapshots: list[tuple[int, int]] = field(default_factory=list)
    #: Tables, by cluster: their words.
    tables: dict[int, list[int]] = field(default_factory=dict)
    blobs: dict[int, bytes] = field(default_factory=dict)
    dirty: bool = False
    #: Of the L1 table; 0: as long as `l1`.
    l1_size: int = 0
    reftable: list[int] = field(default_factory=list)
    reftable_clusters: int = 1
    refcount_order: int = 4
    #: Cluster from which on there is room.
    free: int = 40
    #: Number, size of the directory, and its offset; the directory itself is a table.
    bitmaps: BitmapsExtension | None = None

    #: Where tables are.
    REFTABLE, REFBLOCK, L1 = 1, 2, 3

    def encode(self) -> bytes:
        """Return the image's file."""
        geometry = Geometry(3, self.cluster_bits, self.refcount_order, False, False)
        bits, table = self.cluster_bits, b""
        if self.snapshots:
            table = encode_table(
                [Snapshot(b"%d" % n, b"s", *place, 0) for n, place in enumerate(self.snapshots)]
            )
        ends = [each + geometry.clusters(8 * len(words)) for each, words in self.tables.items()]
        ends += [each + geometry.clusters(len(data)) for each, data in self.blobs.items()]
        snapshots_at = max([self.free, *ends]) << bits
        header = Header(
            geometry,
            self.size,
            self.L1 << bits,
            self.l1_size or max(len(self.l1), geometry.l1_entries(self.size)),
            self.REFTABLE << bits,
            self.reftable_clusters,
            snapshots_offset=snapshots_at if table else 0,
            nb_snapshots=len(self.snapshots),
            incompatible=int(Incompatible.DIRTY) if self.dirty else 0,
            autoclear=int(Autoclear.BITMAPS) if self.bitmaps else 0,
            bitmaps=self.bitmaps,
        )
        parts = {
            0: encode(header),
            self.REFTABLE << bits: _words(self.reftable or [self.REFBLOCK << bits]),
            self.L1 << bits: _words(self.l1),
            snapshots_at: table,
            **{cluster << bits: _words(words) for cluster, words in self.tables.items()},
            **{cluster << bits: data for cluster, data in self.blobs.items()},
        }
        data = bytearray(max(offset + len(part) for offset, part in parts.items()))
        for offset, part in parts.items():
            data[offset : offset + len(part)] = part
        return bytes(data).ljust(-(-len(data) >> bits) << bits, b"\0")


def _words(words: list[int]) -> bytes:
    return struct.pack(f">{len(words)}Q", *words)


def many_snapshots() -> bytes:
    """400 snapshots with L1 tables of 32 MiB in different places, past the file's end."""
    places = [((1000 + number) << 9, _L1_ENTRIES) for number in range(400)]
    return _Image(snapshots=places).encode()


def one_table_for_all() -> bytes:
    """32 snapshots whose long L1 tables overlap in the file, and lead to one L2 table."""
    words = [45 << 9] * 32000
    tables = {45: [COPIED | 46 << 9] * 64, 50: words}
    places = [((50 + number) << 9, _L1_ENTRIES) for number in range(32)]
    return _Image(snapshots=places, tables=tables).encode()


def scattered() -> bytes:
    """A dirty image whose entries lead to clusters that need a refcount block each."""
    l1 = [COPIED | (45 + number) << 9 for number in range(760)]
    tables = {}
    for number in range(760):
        first = 64 * number
        tables[45 + number] = [COPIED | (1000 + at) << 21 for at in range(first, first + 64)]
    return _Image(l1=l1, tables=tables, dirty=True).encode()


def long_claims() -> bytes:
    """An L1 table and a refcount table of the highest length, which the file ends before."""
    return _Image(l1_size=_L1_ENTRIES, reftable_clusters=MAX_REFTABLE_BYTES >> 9).encode()


def one_block_for_all() -> bytes:
    """A refcount table whose entries all lead to one block."""
    return _Image(cluster_bits=16, reftable=[_Image.REFBLOCK << 16] * 8192, free=5).encode()


def long_bitmaps() -> bytes:
    """100 bitmaps in use whose tables of 8 MiB overlap."""
    tables = [
        Bitmap(b"b%d" % number, (60 + number) << 9, 1 << 20, BITMAP_IN_USE, 16)
        for number in range(100)
    ]
    directory = encode_directory(tables)
    extension = BitmapsExtension(len(tables), len(directory), 45 << 9)
    return _Image(blobs={45: directory}, tables={70: [90 << 9] * 8000}, bitmaps=extension).encode()


#: Images by name.
IMAGES: dict[str, Callable[[], bytes]] = {
    each.__name__: each
    for each in (
        many_snapshots,
        one_table_for_all,
        scattered,
        long_claims,
        one_block_for_all,
        long_bitmaps,
    )
}
