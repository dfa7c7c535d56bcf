# SPDX-License-Identifier: Apache-2.0
"""Facts of the format: structures, flags, masks and limits.

Section names are those of `docs/interop/qcow2.txt`. All numbers in the file are big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np

# Header.

MAGIC = 0x514649FB  # "QFI\xfb"

HEADER = np.dtype(
    [
        ("magic", ">u4"),
        ("version", ">u4"),
        ("backing_file_offset", ">u8"),
        ("backing_file_size", ">u4"),
        ("cluster_bits", ">u4"),
        ("size", ">u8"),
        ("crypt_method", ">u4"),
        ("l1_size", ">u4"),
        ("l1_table_offset", ">u8"),
        ("refcount_table_offset", ">u8"),
        ("refcount_table_clusters", ">u4"),
        ("nb_snapshots", ">u4"),
        ("snapshots_offset", ">u8"),
        # Version 3.
        ("incompatible_features", ">u8"),
        ("compatible_features", ">u8"),
        ("autoclear_features", ">u8"),
        ("refcount_order", ">u4"),
        ("header_length", ">u4"),
        # Additional fields.
        ("compression_type", "u1"),
        ("padding", "V7"),
    ]
)
V2_HEADER_LENGTH = 72
V3_HEADER_LENGTH = 104


class Incompatible(IntFlag):
    """Incompatible features: whoever doesn't know one can't open the image."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION = 8
    EXTENDED_L2 = 16
    ALL = 31


class Compatible(IntFlag):
    """Compatible features: may be ignored."""

    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    """Autoclear features: cleared by whoever writes and doesn't know them."""

    BITMAPS = 1
    DATA_FILE_RAW = 2
    ALL = 3


CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1

# Header extensions.

EXTENSION = np.dtype([("magic", ">u4"), ("length", ">u4")])
EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_ENCRYPTION = 0x0537BE77
EXT_DATA_FILE = 0x44415441

FEATURE_NAME = np.dtype([("type", "u1"), ("bit", "u1"), ("name", "V46")])
BITMAPS_EXTENSION = np.dtype(
    [
        ("nb_bitmaps", ">u4"),
        ("reserved", ">u4"),
        ("directory_size", ">u8"),
        ("directory_offset", ">u8"),
    ]
)

# Cluster mapping.

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
#: Where an L1 entry's L2 table, or a standard L2 entry's cluster, lies.
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
REFTABLE_OFFSET_MASK = 0xFFFF_FFFF_FFFF_FE00
#: Compressed data is counted in these.
COMPRESSED_SECTOR = 512
SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1

# Snapshots.

SNAPSHOT_HEADER = np.dtype(
    [
        ("l1_table_offset", ">u8"),
        ("l1_size", ">u4"),
        ("id_size", ">u2"),
        ("name_size", ">u2"),
        ("date_sec", ">u4"),
        ("date_nsec", ">u4"),
        ("vm_clock_nsec", ">u8"),
        ("vm_state_size", ">u4"),
        ("extra_data_size", ">u4"),
    ]
)
SNAPSHOT_EXTRA = np.dtype([("vm_state_size", ">u8"), ("disk_size", ">u8"), ("icount", ">u8")])

# Bitmaps.

BITMAP_IN_USE, BITMAP_AUTO = 1, 2

# Limits, those of QEMU (`block/qcow2.h`).

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOTS_BYTES = 1024 * MAX_SNAPSHOTS
MAX_SNAPSHOT_EXTRA_DATA = 1024
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY_BYTES = 1024 * MAX_BITMAPS
MAX_BITMAP_NAME = 1023
MAX_BITMAP_BYTES = 512 << 20
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31
MAX_CLUSTER_OFFSET = (1 << 56) - 1
MAX_BACKING_NAME, MAX_FORMAT_NAME = 1023, 15
#: Longest data file name: what the first cluster has room for is checked, too.
INT64_MAX = (1 << 63) - 1


def in_hex(value: int) -> str:
    """Write a number as C's `%#x` does, which is how messages have them."""
    return f"{value:#x}" if value else "0"


@dataclass(frozen=True)
class Geometry:
    """Sizes that follow from the header; bits are binary logarithms of bytes or entries."""

    version: int
    cluster_bits: int
    refcount_order: int
    extended_l2: bool
    #: Guest data lies in a file of its own, at the guest's offsets.
    external_data: bool

    def __post_init__(self) -> None:
        put = object.__setattr__  # plain attributes, as all are read for every request
        put(self, "cluster_size", 1 << self.cluster_bits)
        put(self, "subcluster_bits", self.cluster_bits - (5 if self.extended_l2 else 0))
        put(self, "subcluster_size", 1 << self.subcluster_bits)
        put(self, "entry_bits", 4 if self.extended_l2 else 3)
        #: Entries of an L2 table.
        put(self, "l2_bits", self.cluster_bits - self.entry_bits)
        put(self, "refcount_bits", 1 << self.refcount_order)
        #: Entries of a refcount block.
        put(self, "refblock_bits", self.cluster_bits + 3 - self.refcount_order)

    cluster_size: int = 0
    subcluster_bits: int = 0
    subcluster_size: int = 0
    entry_bits: int = 0
    l2_bits: int = 0
    refcount_bits: int = 0
    refblock_bits: int = 0

    @property
    def refcount_max(self) -> int:
        """The highest refcount."""
        return int((1 << self.refcount_bits) - 1)

    def clusters(self, nbytes: int) -> int:
        """Return how many clusters hold so many bytes."""
        return -(-nbytes >> self.cluster_bits)

    def l1_entries(self, size: int) -> int:
        """Return how many L1 entries a disk of `size` bytes takes."""
        return -(-size >> (self.cluster_bits + self.l2_bits))

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Return offset and length, at most, of what a compressed cluster's entry points to."""
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry >> shift & ((1 << (self.cluster_bits - 8)) - 1)) + 1
        return offset, sectors * COMPRESSED_SECTOR - (offset & (COMPRESSED_SECTOR - 1))

    @property
    def compressed_limit(self) -> int:
        """Where in the file compressed data ends at the latest: its entry has no room for more."""
        return 1 << 62 - (self.cluster_bits - 8)

    def compressed_entry(self, offset: int, length: int) -> int:
        """Return the L2 entry of compressed data."""
        shift = 62 - (self.cluster_bits - 8)
        sectors = (offset + length - 1) // COMPRESSED_SECTOR - offset // COMPRESSED_SECTOR
        return COMPRESSED | sectors << shift | offset
