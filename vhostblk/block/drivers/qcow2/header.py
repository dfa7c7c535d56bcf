# SPDX-License-Identifier: Apache-2.0
"""The header and its extensions, in the first cluster of an image.

See the sections "General" to "Data encryption" of the specification.

`parse` is a pure function of that cluster. It does all checks that need only the cluster, in QEMU's
order and words. `encode` is its inverse. Unknown extensions and fields are kept and written back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vhostblk.block import SECTOR
from vhostblk.block.drivers.qcow2 import layout
from vhostblk.block.drivers.qcow2.layout import (
    EXTENSION,
    HEADER,
    INT64_MAX,
    Autoclear,
    Geometry,
    Incompatible,
)
from vhostblk.block.errors import BlockError

#: The number of bytes to read to find the cluster size.
PROBE_BYTES = HEADER.size

#: Clusters of this size or less have no room for feature names in the header.
_NO_NAMES = 4096

#: The feature names that are written to images: (type, bit, name).
FEATURE_NAMES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)


class BitmapsExtension(NamedTuple):
    """Place of the directory of persistent bitmaps."""

    number: int
    size: int
    offset: int


@dataclass
class Header:
    """The first cluster's content; offsets and sizes in bytes, names as in the specification."""

    geometry: Geometry
    size: int
    l1_offset: int
    l1_size: int
    reftable_offset: int
    reftable_clusters: int
    snapshots_offset: int = 0
    nb_snapshots: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    crypt_method: int = 0
    compression_type: int = 0
    #: The bytes of the header that follow the members of `HEADER`.
    unknown_fields: bytes = b""
    backing_file: bytes | None = None
    backing_format: bytes | None = None
    data_file: bytes | None = None
    #: The content of the extension.
    encryption: bytes | None = None
    bitmaps: BitmapsExtension | None = None
    #: There were bitmaps, but a program that doesn't support them has written since.
    stale_bitmaps: bool = False
    unknown_extensions: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def version(self) -> int:
        """2 or 3."""
        return self.geometry.version

    @property
    def lazy_refcounts(self) -> bool:
        """Whether the image uses lazy refcounts."""
        return bool(self.compatible & layout.Compatible.LAZY_REFCOUNTS)

    @property
    def raw_data_file(self) -> bool:
        """Whether the data file is a raw image of the disk."""
        return bool(self.autoclear & Autoclear.DATA_FILE_RAW)


def cluster_size_of(data: bytes) -> int:
    """Return the cluster size from the first `PROBE_BYTES` bytes; raises BlockError."""
    raw = HEADER.decode(data)
    if raw["magic"] != layout.MAGIC:
        raise BlockError("Image is not in qcow2 format")
    if raw["version"] not in (2, 3):
        raise BlockError(f"Unsupported qcow2 version {raw['version']}")
    bits: int = raw["cluster_bits"]
    if not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise BlockError(f"Unsupported cluster size: 2^{bits}")
    return 1 << bits


def parse(data: bytes) -> Header:
    """Parse the first cluster; raises BlockError."""
    cluster_size = cluster_size_of(data)
    raw = HEADER.decode(data)
    version = raw["version"]
    if version == 2:
        raw.update(dict.fromkeys(("incompatible_features", "compatible_features"), 0))
        raw.update(autoclear_features=0, refcount_order=4, header_length=72)
    elif raw["header_length"] < layout.V3_HEADER_LENGTH:
        raise BlockError("qcow2 header too short")
    length = raw["header_length"]
    if length > cluster_size:
        raise BlockError("qcow2 header exceeds cluster size")
    backing_offset = raw["backing_file_offset"]
    if backing_offset > cluster_size:
        raise BlockError("Invalid backing file offset")
    compression = raw["compression_type"] if length > layout.V3_HEADER_LENGTH else 0
    incompatible = raw["incompatible_features"]
    _check_compression(compression, incompatible)
    extensions = _Extensions(data, length, backing_offset or cluster_size)
    if unknown := incompatible & ~int(Incompatible.ALL):
        raise BlockError(_unsupported_features(unknown, extensions))
    geometry = Geometry(
        version=version,
        cluster_bits=raw["cluster_bits"],
        refcount_order=raw["refcount_order"],
        extended_l2=bool(incompatible & Incompatible.EXTENDED_L2),
        external_data=bool(incompatible & Incompatible.DATA_FILE),
    )
    if geometry.subcluster_bits < layout.MIN_CLUSTER_BITS:
        raise BlockError(f"Unsupported subcluster size: {geometry.subcluster_size}")
    if raw["refcount_order"] > 6:
        raise BlockError("Reference count entry width too large; may not exceed 64 bits")
    if raw["crypt_method"] > layout.CRYPT_LUKS:
        raise BlockError(f"Unsupported encryption method {raw['crypt_method']}")
    header = Header(
        geometry,
        size=raw["size"] // SECTOR * SECTOR,
        l1_offset=raw["l1_table_offset"],
        l1_size=raw["l1_size"],
        reftable_offset=raw["refcount_table_offset"],
        reftable_clusters=raw["refcount_table_clusters"],
        snapshots_offset=raw["snapshots_offset"],
        nb_snapshots=raw["nb_snapshots"],
        incompatible=incompatible,
        compatible=raw["compatible_features"],
        autoclear=raw["autoclear_features"],
        crypt_method=raw["crypt_method"],
        compression_type=compression,
        unknown_fields=data[HEADER.size : length],
    )
    _check_tables(header)
    _take_extensions(header, extensions)
    if backing_offset:
        header.backing_file = _backing_name(data, backing_offset, raw["backing_file_size"])
    return header


def _check_compression(kind: int, incompatible: int) -> None:
    if kind not in (layout.COMPRESSION_ZLIB, layout.COMPRESSION_ZSTD):
        raise BlockError(f"qcow2: unknown compression type: {kind}")
    flagged = bool(incompatible & Incompatible.COMPRESSION)
    if flagged != (kind != layout.COMPRESSION_ZLIB):
        raise BlockError(
            "qcow2: Compression type incompatible feature bit must "
            f"{'not ' if flagged else ''}be set"
        )


def check_table(
    geometry: Geometry, offset: int, entries: int, entry_size: int, limit: int, name: str
) -> None:
    """Raise BlockError if the offset or the size of a table is invalid."""
    if entries > limit // entry_size:
        raise BlockError(f"{name} too large")
    if offset > INT64_MAX - entries * entry_size or offset & (geometry.cluster_size - 1):
        raise BlockError(f"{name} offset invalid")


def _check_tables(header: Header) -> None:
    geometry = header.geometry
    if not header.reftable_clusters:
        raise BlockError("Image does not contain a reference count table")
    check_table(
        geometry,
        header.reftable_offset,
        header.reftable_clusters,
        geometry.cluster_size,
        layout.MAX_REFTABLE_BYTES,
        "Reference count table",
    )
    check_table(
        geometry,
        header.snapshots_offset,
        header.nb_snapshots,
        layout.SNAPSHOT_HEADER.size,
        layout.SNAPSHOT_HEADER.size * layout.MAX_SNAPSHOTS,
        "Snapshot table",
    )
    check_table(
        geometry, header.l1_offset, header.l1_size, 8, layout.MAX_L1_BYTES, "Active L1 table"
    )
    needed = geometry.l1_entries(header.size)
    if needed > 0x7FFF_FFFF:
        raise BlockError("Image is too big")
    if header.l1_size < needed:
        raise BlockError("L1 table is too small")


class _Extensions:
    """Walks the extensions in [start, stop) of the first cluster."""

    def __init__(self, data: bytes, start: int, stop: int) -> None:
        self._data, self._start, self._stop = data, start, stop

    def walk(self) -> list[tuple[int, bytes]]:
        """Return magic numbers and contents; raises BlockError."""
        found: list[tuple[int, bytes]] = []
        position, stop = self._start, self._stop
        while position < stop:
            if position + EXTENSION.size > stop:
                raise BlockError("Header extension too large")
            extension = EXTENSION.decode(self._data, position)
            magic, length = extension["magic"], extension["length"]
            position += EXTENSION.size
            if length > stop - position:
                raise BlockError("Header extension too large")
            if magic == layout.EXT_END:
                break
            found.append((magic, self._data[position : position + length]))
            position += -(-length // 8) * 8
        return found


def _unsupported_features(unknown: int, extensions: _Extensions) -> str:
    """Return the names of incompatible features, by the image's feature name table."""
    names: dict[int, str] = {}
    try:
        for magic, content in extensions.walk():
            if magic == layout.EXT_FEATURE_NAMES:
                count = len(content) // layout.FEATURE_NAME.size
                for index in range(count):
                    entry = layout.FEATURE_NAME.decode(content, index * layout.FEATURE_NAME.size)
                    if entry["type"] == 0:
                        text = entry["name"].split(b"\0", 1)[0].decode("ascii", "replace")
                        names.setdefault(entry["bit"], text if text.isprintable() else "")
    except BlockError:
        names.clear()
    listed = [names[bit] for bit in range(64) if unknown >> bit & 1 and names.get(bit)]
    unnamed = unknown & ~sum(1 << bit for bit in range(64) if names.get(bit))
    if unnamed:
        listed.append(f"Unknown incompatible feature: {unnamed:x}")
    return f"Unsupported qcow2 feature(s): {', '.join(listed)}"


def _take_extensions(header: Header, extensions: _Extensions) -> None:
    for magic, content in extensions.walk():
        if magic == layout.EXT_BACKING_FORMAT:
            if len(content) >= 16:
                raise BlockError(f"ERROR: ext_backing_format: len={len(content)} too large (>=16)")
            header.backing_format = content
        elif magic == layout.EXT_DATA_FILE:
            header.data_file = content
        elif magic == layout.EXT_BITMAPS:
            _take_bitmaps(header, content)
        elif magic == layout.EXT_ENCRYPTION:
            if header.crypt_method != layout.CRYPT_LUKS:
                raise BlockError(
                    "CRYPTO header extension only expected with LUKS encryption method"
                )
            header.encryption = content
        elif magic != layout.EXT_FEATURE_NAMES:
            header.unknown_extensions.append((magic, content))


def _take_bitmaps(header: Header, content: bytes) -> None:
    if len(content) != layout.BITMAPS_EXTENSION.size:
        raise BlockError("bitmaps_ext: Invalid extension length")
    if not header.autoclear & Autoclear.BITMAPS:
        header.stale_bitmaps = True
        return
    raw = layout.BITMAPS_EXTENSION.decode(content)
    found = BitmapsExtension(raw["nb_bitmaps"], raw["directory_size"], raw["directory_offset"])
    if raw["reserved"]:
        raise BlockError("bitmaps_ext: Reserved field is not zero")
    if found.number > layout.MAX_BITMAPS:
        raise BlockError(
            f"bitmaps_ext: Image has {found.number} bitmaps, exceeding the QEMU supported maximum "
            f"of {layout.MAX_BITMAPS}"
        )
    if not found.number:
        raise BlockError("found bitmaps extension with zero bitmaps")
    if found.offset & (header.geometry.cluster_size - 1) or found.offset > INT64_MAX // 2:
        raise BlockError("bitmaps_ext: invalid bitmap directory offset")
    if found.size > layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise BlockError(
            f"bitmaps_ext: bitmap directory size ({found.size}) exceeds the maximum supported "
            f"size ({layout.MAX_BITMAP_DIRECTORY_BYTES})"
        )
    header.bitmaps = found


def _backing_name(data: bytes, offset: int, length: int) -> bytes:
    if length > min(layout.MAX_BACKING_NAME, len(data) - offset):
        raise BlockError("Backing file name too long")
    return data[offset : offset + length].split(b"\0", 1)[0]


def encode(header: Header) -> bytes:
    """Return the first cluster, one cluster long; raises BlockError if it has no room."""
    size = header.geometry.cluster_size
    tail = b"".join(_encode_extension(magic, content) for magic, content in _extensions(header))
    tail += bytes(EXTENSION.size)
    length, name = _length(header), header.backing_file
    if name is not None:
        backing = {"backing_file_offset": length + len(tail), "backing_file_size": len(name)}
    else:
        backing = {"backing_file_offset": 0, "backing_file_size": 0}
    front = HEADER.encode(**_members(header), **backing)
    if header.version == 2:
        front = front[:length]
    else:
        front += header.unknown_fields
    if name is not None:
        tail += name
    if len(front) + len(tail) > size:
        raise BlockError("Could not update qcow2 header: No space left on device")
    return (front + tail).ljust(size, b"\0")


def encode_fields(header: Header) -> tuple[int, bytes]:
    """Return the header fields that change while an image is in use, as offset and bytes.

    These are sizes, offsets of tables, and features. All are in the first sector.
    """
    raw = HEADER.encode(**_members(header), backing_file_offset=0, backing_file_size=0)
    start, stop = HEADER.offsets["size"], HEADER.offsets["refcount_order"]
    return start, raw[start : min(stop, _length(header))]


def _length(header: Header) -> int:
    """Return the length of the header up to the first extension."""
    if header.version == 2:
        return layout.V2_HEADER_LENGTH
    return HEADER.size + len(header.unknown_fields)


def _members(header: Header) -> dict[str, Any]:
    """Return the members of the structure, without the offset of the backing file name."""
    return {
        "magic": layout.MAGIC,
        "version": header.version,
        "cluster_bits": header.geometry.cluster_bits,
        "size": header.size,
        "crypt_method": header.crypt_method,
        "l1_size": header.l1_size,
        "l1_table_offset": header.l1_offset,
        "refcount_table_offset": header.reftable_offset,
        "refcount_table_clusters": header.reftable_clusters,
        "nb_snapshots": header.nb_snapshots,
        "snapshots_offset": header.snapshots_offset,
        "incompatible_features": header.incompatible,
        "compatible_features": header.compatible,
        "autoclear_features": header.autoclear,
        "refcount_order": header.geometry.refcount_order,
        "header_length": _length(header),
        "compression_type": header.compression_type,
        "padding": b"",
    }


def _extensions(header: Header) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    if header.bitmaps is not None:
        # First, to be in one sector with the feature bit that makes it valid.
        bitmaps = layout.BITMAPS_EXTENSION.encode(
            nb_bitmaps=header.bitmaps.number,
            reserved=0,
            directory_size=header.bitmaps.size,
            directory_offset=header.bitmaps.offset,
        )
        found.append((layout.EXT_BITMAPS, bitmaps))
    if header.backing_format is not None:
        found.append((layout.EXT_BACKING_FORMAT, header.backing_format))
    if header.data_file is not None:
        found.append((layout.EXT_DATA_FILE, header.data_file))
    if header.encryption is not None:
        found.append((layout.EXT_ENCRYPTION, header.encryption))
    if header.version >= 3 and header.geometry.cluster_size > _NO_NAMES:
        names = [
            layout.FEATURE_NAME.encode(type=kind, bit=bit, name=text.encode())
            for kind, bit, text in FEATURE_NAMES
        ]
        found.append((layout.EXT_FEATURE_NAMES, b"".join(names)))
    return found + header.unknown_extensions


def _encode_extension(magic: int, content: bytes) -> bytes:
    head = EXTENSION.encode(magic=magic, length=len(content))
    return head + content.ljust(-(-len(content) // 8) * 8, b"\0")
