# SPDX-License-Identifier: Apache-2.0
"""Boot sectors and directory entries as bytes (fatgen103, "Boot Sector and BPB", "Directories")."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

SECTOR = 512
ENTRY = 32
FATS = 2
#: Where FAT32 keeps its boot sector's copy, and the sectors before the first table.
BACKUP_BOOT = 6
RESERVED_32 = 32
RESERVED_16 = 1
#: Fewer clusters than this make FAT12 (and so on), and it is better not to come near.
MIN_CLUSTERS_16 = 4085 + 16
MIN_CLUSTERS_32 = 65525 + 16
MAX_CLUSTERS_16 = 65524 - 16
MAX_CLUSTERS_32 = 0x0FFF_FFF4 - 16

ATTR_VOLUME, ATTR_DIRECTORY, ATTR_ARCHIVE = 0x08, 0x10, 0x20
_READ_ONLY = 0x01

_BPB = struct.Struct("<3s8sHBHBHHBHHHII")
_BPB_32 = struct.Struct("<IHHIHH12x")
_BPB_END = struct.Struct("<BBBI11s8s")
_DIRECTORY_ENTRY = struct.Struct("<11sBBBHHHHHHHI")


@dataclass(frozen=True)
class Geometry:
    """The numbers that make a volume. Clusters are numbered from 2."""

    is_32: bool
    cluster: int
    clusters: int
    root_entries: int
    label: bytes
    serial: int

    @property
    def reserved(self) -> int:
        """Bytes before the first table."""
        return (RESERVED_32 if self.is_32 else RESERVED_16) * SECTOR

    @property
    def fat_bytes(self) -> int:
        """Bytes of one table, in whole sectors."""
        width = 4 if self.is_32 else 2
        return -(-(self.clusters + 2) * width // SECTOR) * SECTOR

    @property
    def root_start(self) -> int:
        """Where the root directory of FAT16 is."""
        return self.reserved + FATS * self.fat_bytes

    @property
    def data_start(self) -> int:
        """Where cluster 2 is."""
        return self.root_start + self.root_entries * ENTRY

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self.data_start + self.clusters * self.cluster


def reserved_sectors(geometry: Geometry, used: int) -> bytes:
    """Return everything before the first table; `used` clusters are not free."""
    boot = _boot_sector(geometry)
    if not geometry.is_32:
        return boot
    info = _info_sector(geometry.clusters - used, used + 2)
    half = (boot + info).ljust(BACKUP_BOOT * SECTOR, b"\0")
    return (half + half).ljust(geometry.reserved, b"\0")


def _boot_sector(geometry: Geometry) -> bytes:
    sectors = geometry.size // SECTOR
    fat_sectors = geometry.fat_bytes // SECTOR
    small = not geometry.is_32 and sectors < 1 << 16
    sector = _BPB.pack(
        b"\xeb\x58\x90" if geometry.is_32 else b"\xeb\x3c\x90",
        b"VHOSTBLK",
        SECTOR,
        geometry.cluster // SECTOR,
        geometry.reserved // SECTOR,
        FATS,
        geometry.root_entries,
        sectors if small else 0,
        0xF8,
        0 if geometry.is_32 else fat_sectors,
        63,
        255,
        0,
        0 if small else sectors,
    )
    if geometry.is_32:
        sector += _BPB_32.pack(fat_sectors, 0, 0, 2, 1, BACKUP_BOOT)
    kind = b"FAT32   " if geometry.is_32 else b"FAT16   "
    sector += _BPB_END.pack(0x80, 0, 0x29, geometry.serial, geometry.label, kind)
    return sector.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _info_sector(free: int, next_free: int) -> bytes:
    start = struct.pack("<I", 0x41615252).ljust(484, b"\0")
    return start + struct.pack("<III12xI", 0x61417272, free, next_free, 0xAA550000)


def directory_entry(
    short: bytes, attributes: int, cluster: int = 0, size: int = 0, mtime: float = 0.0
) -> bytes:
    """Return one entry; all is read-only, and times are in UTC."""
    date, clock = _dos_time(mtime)
    if not attributes & ATTR_VOLUME:
        attributes |= _READ_ONLY
    return _DIRECTORY_ENTRY.pack(
        short,
        attributes,
        0,
        0,
        clock,
        date,
        date,
        cluster >> 16,
        clock,
        date,
        cluster & 0xFFFF,
        size,
    )


def _dos_time(mtime: float) -> tuple[int, int]:
    """Return date and time; what lies outside 1980 to 2107 is moved to its edge."""
    first, last = 315532800, 4354819198
    moment = time.gmtime(min(max(mtime, first), last))
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return date, moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
