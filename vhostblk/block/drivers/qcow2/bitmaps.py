# SPDX-License-Identifier: Apache-2.0
"""Persistent dirty bitmaps (section "Bitmaps"): parsing and encoding, pure.

As in QEMU, unknown flags, types and extra data, which the specification allows in newer images, are
refused: their meaning for writes is unknown.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.errors import BlockError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.layout import Geometry

_ENTRY = struct.Struct(">QIIBBHI")
_TYPE_DIRTY = 1
_KNOWN_FLAGS = layout.BITMAP_IN_USE | layout.BITMAP_AUTO
#: Table entries: either an offset, or a flag for all bits set. The rest is reserved.
_RESERVED = np.uint64(0xFF00_0000_0000_01FE)
_OFFSET = np.uint64(layout.OFFSET_MASK)
_ALL_ONES = np.uint64(1)


@dataclass
class Bitmap:
    """An entry of the directory."""

    name: bytes
    table_offset: int
    #: Number of entries.
    table_size: int
    flags: int
    granularity_bits: int

    @property
    def text(self) -> str:
        """The name as text."""
        return self.name.decode(errors="replace")

    @property
    def in_use(self) -> bool:
        """Whether a program had it in memory and never wrote it back: its content is wrong."""
        return bool(self.flags & layout.BITMAP_IN_USE)

    @property
    def records(self) -> bool:
        """Whether it records writes when loaded."""
        return bool(self.flags & layout.BITMAP_AUTO)


def parse_directory(data: bytes, count: int, geometry: Geometry, size: int) -> list[Bitmap]:
    """Parse the directory of `count` bitmaps of a disk of `size` bytes; raises BlockError."""
    if not data:
        raise BlockError("Requested bitmap directory size is zero")
    found: list[Bitmap] = []
    position = 0
    while position < len(data):
        start = position + _ENTRY.size
        if start > len(data):
            raise BlockError("Broken bitmap directory")
        if len(found) == count:
            raise BlockError("More bitmaps found than specified in header extension")
        table_offset, table_size, flags, kind, granularity_bits, name_size, extra = (
            _ENTRY.unpack_from(data, position)
        )
        position = -(-(start + extra + name_size) // 8) * 8
        if position > len(data):
            raise BlockError("Broken bitmap directory")
        if extra:
            raise BlockError("Bitmap extra data is not supported")
        name = data[start : start + name_size].split(b"\0", 1)[0]
        bitmap = Bitmap(name, table_offset, table_size, flags, granularity_bits)
        if kind != _TYPE_DIRTY or name_size > layout.MAX_BITMAP_NAME:
            raise _bad_entry(bitmap)
        _check_entry(bitmap, geometry, size)
        found.append(bitmap)
    if len(found) != count:
        raise BlockError("Less bitmaps found than specified in header extension")
    return found


def _bad_entry(bitmap: Bitmap) -> BlockError:
    return BlockError(f"Bitmap '{bitmap.text}' doesn't satisfy the constraints")


def _check_entry(bitmap: Bitmap, geometry: Geometry, size: int) -> None:
    stored = bitmap.table_size << geometry.cluster_bits
    if (
        not bitmap.table_size
        or not bitmap.table_offset
        or bitmap.table_offset & (geometry.cluster_size - 1)
        or bitmap.table_offset > layout.MAX_CLUSTER_OFFSET
        or not layout.MIN_GRANULARITY_BITS <= bitmap.granularity_bits <= layout.MAX_GRANULARITY_BITS
        or bitmap.flags & ~_KNOWN_FLAGS
        or stored > layout.MAX_BITMAP_BYTES
        # A bitmap in use may also have a wrong size.
        or (not bitmap.in_use and size > stored << 3 + bitmap.granularity_bits)
    ):
        raise _bad_entry(bitmap)


def entry_size(name: bytes) -> int:
    """Return the size of a bitmap's directory entry in bytes."""
    return -(-(_ENTRY.size + len(name)) // 8) * 8


def encode_directory(bitmaps: Iterable[Bitmap]) -> bytes:
    """Undo `parse_directory`."""
    parts: list[bytes] = []
    for each in bitmaps:
        entry = _ENTRY.pack(
            each.table_offset,
            each.table_size,
            each.flags,
            _TYPE_DIRTY,
            each.granularity_bits,
            len(each.name),
            0,
        )
        parts.append((entry + each.name).ljust(entry_size(each.name), b"\0"))
    return b"".join(parts)


def table_is_good(table: NDArray[np.uint64], geometry: Geometry) -> bool:
    """Return whether all entries of a bitmap's table are valid."""
    offsets = table & _OFFSET
    misplaced = (offsets & np.uint64(geometry.cluster_size - 1)) != 0
    contradictory = (offsets != 0) & ((table & _ALL_ONES) != 0)
    return not ((table & _RESERVED) != 0).any() and not (misplaced | contradictory).any()


def table_offsets(table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the offsets of a bitmap's clusters; 0: no cluster, all its bits are equal."""
    return table & _OFFSET


def table_ones(table: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return for each cluster whether all its bits are set."""
    ones: NDArray[np.bool_] = (table & _ALL_ONES) != 0
    return ones
