# SPDX-License-Identifier: Apache-2.0
"""The log of dm-log-writes (Linux `drivers/md/dm-log-writes.c`): all little-endian, in sectors.

    sector 0      superblock
    from 1 on     entry, and the sectors of its data, if it is a write; next entry, …

An entry for a flush has no data and a length of 0. An entry for a discard has a length in sectors,
and no data.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

MAGIC = 0x6A736677736872
VERSION = 1

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")

SUPER_BYTES = _SUPER.size
ENTRY_BYTES = _ENTRY.size


class LogFlag(IntFlag):
    """The type of an entry; no flag: a write."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8


#: An integer, because the complement of an IntFlag omits unknown flags.
ALL_FLAGS = int(LogFlag.FLUSH | LogFlag.FUA | LogFlag.DISCARD | LogFlag.MARK)


class LogSuper(NamedTuple):
    """The superblock."""

    magic: int
    version: int
    entries: int
    sector_size: int

    def pack(self) -> bytes:
        """Return the superblock as a whole sector."""
        return _SUPER.pack(*self).ljust(self.sector_size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> LogSuper:
        """Parse the first `SUPER_BYTES`."""
        return cls(*_SUPER.unpack_from(data))


class LogEntry(NamedTuple):
    """One entry: sector, length in sectors, flags. `data_length` is that of marks."""

    sector: int
    sectors: int
    flags: int
    data_length: int = 0

    def pack(self, sector_size: int) -> bytes:
        """Return the entry as a whole sector."""
        return _ENTRY.pack(*self).ljust(sector_size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> LogEntry:
        """Parse the first `ENTRY_BYTES`."""
        return cls(*_ENTRY.unpack_from(data))

    @property
    def length(self) -> int:
        """The number of sectors in the log, including the entry's own."""
        return 1 if self.flags & LogFlag.DISCARD else 1 + self.sectors


def is_sector_size(size: int) -> bool:
    """Return whether this is a valid sector size for a log."""
    return size & (size - 1) == 0 and max(SUPER_BYTES, ENTRY_BYTES) <= size < 1 << 24
