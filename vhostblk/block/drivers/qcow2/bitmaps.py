# SPDX-License-Identifier: Apache-2.0
"""Persistent dirty bitmaps (section "Bitmaps"): the directory, parsed and encoded, pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.layout import BITMAP_ENTRY
from vhostblk.block.errors import BlockError


@dataclass
class Bitmap:
    """An entry of the directory."""

    name: bytes
    table_offset: int
    #: In entries.
    table_size: int
    flags: int
    type: int
    granularity_bits: int
    extra: bytes = b""

    @property
    def in_use(self) -> bool:
        """Whether somebody had it in memory and never wrote it back: its content is wrong."""
        return bool(self.flags & layout.BITMAP_IN_USE)

    @property
    def records(self) -> bool:
        """Whether it is to know of every write."""
        return bool(self.flags & layout.BITMAP_AUTO)


def parse_directory(data: bytes, count: int) -> list[Bitmap]:
    """Parse the directory of `count` bitmaps; raises BlockError."""
    found: list[Bitmap] = []
    position = 0
    while position < len(data):
        if position + BITMAP_ENTRY.itemsize > len(data):
            raise BlockError("Broken bitmap directory")
        raw = np.frombuffer(data, BITMAP_ENTRY, 1, position)[0]
        extra, name = int(raw["extra_data_size"]), int(raw["name_size"])
        start = position + BITMAP_ENTRY.itemsize
        end = start + extra + name
        if len(found) == count or end > len(data) or name > layout.MAX_BITMAP_NAME:
            raise BlockError("Broken bitmap directory")
        table_size = int(raw["table_size"])
        if table_size > 0x0800_0000 // 8 or not 9 <= int(raw["granularity_bits"]) <= 31:
            raise BlockError("Broken bitmap directory")
        found.append(
            Bitmap(
                name=data[start + extra : end],
                table_offset=int(raw["table_offset"]),
                table_size=table_size,
                flags=int(raw["flags"]),
                type=int(raw["type"]),
                granularity_bits=int(raw["granularity_bits"]),
                extra=data[start : start + extra],
            )
        )
        position = -(-end // 8) * 8
    if len(found) != count:
        raise BlockError("Broken bitmap directory")
    return found


def encode_directory(bitmaps: list[Bitmap]) -> bytes:
    """Undo `parse_directory`."""
    parts: list[bytes] = []
    for each in bitmaps:
        raw = np.zeros(1, BITMAP_ENTRY)
        values = {
            "table_offset": each.table_offset,
            "table_size": each.table_size,
            "flags": each.flags,
            "type": each.type,
            "granularity_bits": each.granularity_bits,
            "name_size": len(each.name),
            "extra_data_size": len(each.extra),
        }
        for name, value in values.items():
            raw[name] = value
        entry = raw.tobytes() + each.extra + each.name
        parts.append(entry.ljust(-(-len(entry) // 8) * 8, b"\0"))
    return b"".join(parts)
