# SPDX-License-Identifier: Apache-2.0
"""Constants of the format: structures, flags, masks and limits.

Section names are those of `docs/interop/qcow2.txt`. All numbers in the file are big-endian. The
daemon opens images at start-up, so this module doesn't need numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct, calcsize
from typing import Any


class Record:
    """A structure in the file: packed members, each with a name and a `struct` code."""

    def __init__(self, *members: tuple[str, str]) -> None:
        self.names = tuple(name for name, _ in members)
        #: The offset of each member in bytes.
        self.offsets: dict[str, int] = {}
        codes = ">"
        for name, code in members:
            self.offsets[name] = calcsize(codes)
            codes += code
        self._struct = Struct(codes)
        self.size = self._struct.size

    def decode(self, data: bytes, start: int = 0) -> dict[str, Any]:
        """Return the members by name; `data` is long enough."""
        return dict(zip(self.names, self._struct.unpack_from(data, start), strict=True))

    def encode(self, **members: Any) -> bytes:
        """Undo `decode`."""
        return self._struct.pack(*(members[name] for name in self.names))


# Header.

MAGIC = 0x514649FB  # "QFI\xfb"

HEADER = Record(
    ("magic", "I"),
    ("version", "I"),
    ("backing_file_offset", "Q"),
    ("backing_file_size", "I"),
    ("cluster_bits", "I"),
    ("size", "Q"),
    ("crypt_method", "I"),
    ("l1_size", "I"),
    ("l1_table_offset", "Q"),
    ("refcount_table_offset", "Q"),
    ("refcount_table_clusters", "I"),
    ("nb_snapshots", "I"),
    ("snapshots_offset", "Q"),
    # Version 3.
    ("incompatible_features", "Q"),
    ("compatible_features", "Q"),
    ("autoclear_features", "Q"),
    ("refcount_order", "I"),
    ("header_length", "I"),
    # Additional fields.
    ("compression_type", "B"),
    ("padding", "7s"),
)
V2_HEADER_LENGTH = 72
V3_HEADER_LENGTH = 104


class Incompatible(IntFlag):
    """Incompatible features: a program that doesn't support one can't open the image."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION = 8
    EXTENDED_L2 = 16
    ALL = 31


class Compatible(IntFlag):
    """Compatible features: a program may ignore them."""

    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    """Autoclear features: a program that writes and doesn't support one clears it."""

    BITMAPS = 1
    DATA_FILE_RAW = 2
    ALL = 3


CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1

# Header extensions.

EXTENSION = Record(("magic", "I"), ("length", "I"))
EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_ENCRYPTION = 0x0537BE77
EXT_DATA_FILE = 0x44415441

FEATURE_NAME = Record(("type", "B"), ("bit", "B"), ("name", "46s"))
BITMAPS_EXTENSION = Record(
    ("nb_bitmaps", "I"),
    ("reserved", "I"),
    ("directory_size", "Q"),
    ("directory_offset", "Q"),
)

# Cluster mapping.

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
#: The offset of an L1 entry's L2 table, or of a standard L2 entry's cluster.
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
REFTABLE_OFFSET_MASK = 0xFFFF_FFFF_FFFF_FE00
#: The unit of the length of compressed data.
COMPRESSED_SECTOR = 512
SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1

# Bits of an extent map's entry, as in the engine (`engine/src/core/extent.cdef.h`).
READ, OVERWRITE, READ_ZERO = 1, 2, 4
#: The metadata that refers to the cluster is not on stable storage; see `volatile`.
VOLATILE_BITS = (8, 16)
VOLATILE = 24


class Kind(IntEnum):
    """The type of a subcluster."""

    #: Not allocated: data of the backing file, or zeroes.
    UNALLOCATED = 0
    #: Reads as zeroes.
    ZERO = 1
    DATA = 2
    COMPRESSED = 3
    INVALID = 4


# Snapshots.

SNAPSHOT_HEADER = Record(
    ("l1_table_offset", "Q"),
    ("l1_size", "I"),
    ("id_size", "H"),
    ("name_size", "H"),
    ("date_sec", "I"),
    ("date_nsec", "I"),
    ("vm_clock_nsec", "Q"),
    ("vm_state_size", "I"),
    ("extra_data_size", "I"),
)
SNAPSHOT_EXTRA = Record(("vm_state_size", "Q"), ("disk_size", "Q"), ("icount", "Q"))

# Bitmaps.

BITMAP_IN_USE, BITMAP_AUTO = 1, 2

# Limits, those of QEMU (`block/qcow2.h`).

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOTS_BYTES = 1024 * MAX_SNAPSHOTS
MAX_SNAPSHOT_EXTRA_DATA = 1024
#: The limit for names that we write; images may have longer ones.
MAX_SNAPSHOT_NAME = 255
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY_BYTES = 1024 * MAX_BITMAPS
MAX_BITMAP_NAME = 1023
MAX_BITMAP_BYTES = 512 << 20
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31
MAX_CLUSTER_OFFSET = (1 << 56) - 1
MAX_BACKING_NAME, MAX_FORMAT_NAME = 1023, 15
#: The maximum length of a data file name; it must also fit into the first cluster.
INT64_MAX = (1 << 63) - 1


def in_hex(value: int) -> str:
    """Format a number like C's `%#x`, as in QEMU's messages."""
    return f"{value:#x}" if value else "0"


@dataclass(frozen=True)
class Geometry:
    """Sizes derived from the header; bits are binary logarithms of bytes or entries."""

    version: int
    cluster_bits: int
    refcount_order: int
    extended_l2: bool
    #: Guest data is in a separate file, at the guest's offsets.
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
        """Return the number of clusters for this many bytes."""
        return -(-nbytes >> self.cluster_bits)

    def l1_entries(self, size: int) -> int:
        """Return the number of L1 entries for a disk of `size` bytes."""
        return -(-size >> (self.cluster_bits + self.l2_bits))

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Return offset and maximum length of the data of a compressed cluster's entry."""
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry >> shift & ((1 << (self.cluster_bits - 8)) - 1)) + 1
        return offset, sectors * COMPRESSED_SECTOR - (offset & (COMPRESSED_SECTOR - 1))

    @property
    def compressed_limit(self) -> int:
        """The limit of offsets of compressed data in the file: the entry has no more bits."""
        return 1 << 62 - (self.cluster_bits - 8)

    def compressed_entry(self, offset: int, length: int) -> int:
        """Return the L2 entry for compressed data."""
        shift = 62 - (self.cluster_bits - 8)
        sectors = (offset + length - 1) // COMPRESSED_SECTOR - offset // COMPRESSED_SECTOR
        return COMPRESSED | sectors << shift | offset
