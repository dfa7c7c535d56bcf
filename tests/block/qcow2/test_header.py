# SPDX-License-Identifier: Apache-2.0
"""The header: what is refused and in which words; hostile ones end in one clear error."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2 import header, layout
from vhostblk.block.drivers.qcow2.header import BitmapsExtension, Header, encode, parse
from vhostblk.block.drivers.qcow2.layout import HEADER, Geometry, Incompatible
from vhostblk.block.errors import BlockError

_KNOWN = (
    layout.EXT_BACKING_FORMAT,
    layout.EXT_FEATURE_NAMES,
    layout.EXT_BITMAPS,
    layout.EXT_ENCRYPTION,
    layout.EXT_DATA_FILE,
)
V3 = Geometry(version=3, cluster_bits=12, refcount_order=4, extended_l2=False, external_data=False)


def make(**members: object) -> Header:
    values: dict[str, object] = {
        "size": 1 << 20,
        "l1_offset": 0x3000,
        "l1_size": 1,
        "reftable_offset": 0x1000,
        "reftable_clusters": 1,
    }
    return Header(V3, **{**values, **members})  # type: ignore[arg-type]


def patched(field: str, value: int) -> bytes:
    """Return a good first cluster with one member changed."""
    data = bytearray(encode(make()))
    data[: HEADER.size] = HEADER.encode(**HEADER.decode(bytes(data)) | {field: value})
    return bytes(data)


def test_what_was_encoded_is_parsed() -> None:
    original = make(
        incompatible=1,
        compatible=1,
        autoclear=1,
        backing_file=b"base.img",
        backing_format=b"raw",
        bitmaps=BitmapsExtension(2, 64, 0x5000),
        unknown_extensions=[(0x12345678, b"kept"), (0x9, b"")],
    )
    assert parse(encode(original)) == original


def test_a_backing_file_and_a_data_file_have_their_extensions() -> None:
    found = parse(
        encode(
            make(
                incompatible=int(Incompatible.DATA_FILE),
                backing_file=b"base.img",
                backing_format=b"raw",
                data_file=b"data.img",
            )
        )
    )
    assert (found.backing_file, found.backing_format) == (b"base.img", b"raw")
    assert found.data_file == b"data.img"


names = st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name)
magics = st.integers(1, (1 << 32) - 1).filter(lambda magic: magic not in _KNOWN)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Return any header that can be encoded, in clusters of any size."""
    version = draw(st.sampled_from([2, 3]))
    bits = draw(st.sampled_from([9, 12, 13, 16, 21]))
    zstd = version == 3 and draw(st.booleans())
    header = Header(
        Geometry(version, bits, 4, extended_l2=False, external_data=False),
        size=draw(st.integers(0, 1 << 20)) * 512,
        l1_offset=draw(st.integers(1, 1 << 20)) << bits,
        l1_size=1 << 15,
        reftable_offset=draw(st.integers(1, 1 << 20)) << bits,
        reftable_clusters=1,
        snapshots_offset=draw(st.integers(1, 1 << 20)) << bits,
        nb_snapshots=draw(st.integers(0, 9)),
        incompatible=8 if zstd else 0,
        compression_type=int(zstd),
        backing_file=draw(st.none() | names | st.just(b"n" * 1023)),
        backing_format=draw(st.none() | names),
        unknown_extensions=draw(st.lists(st.tuples(magics, st.binary(max_size=40)), max_size=3)),
    )
    header.size = min(header.size, header.l1_size << 2 * bits - 3)
    if version == 3:
        header.compatible = draw(st.integers(0, 1 << 63))
        header.autoclear = draw(st.integers(0, 1 << 63)) & ~2 | 1
        header.unknown_fields = draw(st.binary(max_size=100))
        if draw(st.booleans()):
            header.bitmaps = BitmapsExtension(2, 64, 5 << bits)
    return header


@settings(max_examples=300, deadline=None)
@given(headers())
def test_whatever_was_encoded_is_parsed(original: Header) -> None:
    try:
        data = encode(original)
    except BlockError:
        assume(original.geometry.cluster_size > 4096)  # only small clusters can be too small
        raise
    assert len(data) == original.geometry.cluster_size
    parsed = parse(data)
    assert parsed == original
    assert encode(parsed) == data


@pytest.mark.parametrize("length", [113, 120, 256, 512])
def test_a_name_behind_unknown_fields_keeps_its_place(length: int) -> None:
    fields = (bytes(range(1, 256)) * 2)[: length - HEADER.size]
    data = encode(make(backing_file=b"base.img", unknown_fields=fields))
    raw = HEADER.decode(data)
    assert raw["header_length"] == length
    assert data[HEADER.size : length] == fields
    start = raw["backing_file_offset"]
    assert data[start : start + raw["backing_file_size"]] == b"base.img"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("magic", 1, "Image is not in qcow2 format"),
        ("version", 4, "Unsupported qcow2 version 4"),
        ("cluster_bits", 8, "Unsupported cluster size: 2^8"),
        ("cluster_bits", 22, "Unsupported cluster size: 2^22"),
        ("header_length", 103, "qcow2 header too short"),
        ("header_length", 4097, "qcow2 header exceeds cluster size"),
        ("backing_file_offset", 4097, "Invalid backing file offset"),
        ("compression_type", 2, "qcow2: unknown compression type: 2"),
        (
            "compression_type",
            1,
            "qcow2: Compression type incompatible feature bit must be set",
        ),
        (
            "incompatible_features",
            8,
            "qcow2: Compression type incompatible feature bit must not be set",
        ),
        (
            "incompatible_features",
            1 << 40,
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 10000000000",
        ),
        ("incompatible_features", 16, "Unsupported subcluster size: 128"),
        (
            "refcount_order",
            7,
            "Reference count entry width too large; may not exceed 64 bits",
        ),
        ("crypt_method", 3, "Unsupported encryption method 3"),
        ("refcount_table_clusters", 0, "Image does not contain a reference count table"),
        ("refcount_table_clusters", 2049, "Reference count table too large"),
        ("refcount_table_offset", 100, "Reference count table offset invalid"),
        ("nb_snapshots", 65537, "Snapshot table too large"),
        ("snapshots_offset", 1, "Snapshot table offset invalid"),
        ("l1_size", (32 << 17) + 1, "Active L1 table too large"),
        ("l1_table_offset", 1 << 63, "Active L1 table offset invalid"),
        ("size", 1 << 62, "Image is too big"),
        ("size", 1 << 30, "L1 table is too small"),
    ],
)
def test_refusals_are_those_of_qemu(field: str, value: int, message: str) -> None:
    with pytest.raises(BlockError) as caught:
        parse(patched(field, value))
    assert str(caught.value) == message


def test_features_are_named_as_the_image_names_them() -> None:
    names = layout.FEATURE_NAME.encode(type=0, bit=7, name=b"time travel")
    data = bytearray(patched("incompatible_features", 1 << 7))
    start = HEADER.size
    extension = layout.EXTENSION.encode(magic=layout.EXT_FEATURE_NAMES, length=48)
    data[start : start + 64] = extension + names + bytes(8)
    with pytest.raises(BlockError, match=r"^Unsupported qcow2 feature\(s\): time travel$"):
        parse(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 4000))
def test_hostile_headers_end_in_one_error(noise: bytes, place: int) -> None:
    data = bytearray(encode(make(backing_file=b"x", bitmaps=BitmapsExtension(1, 32, 0))))
    end = min(len(data), place + len(noise))
    data[place:end] = noise[: end - place]
    try:
        parsed = parse(bytes(data).ljust(2 << 20, b"\0"))
    except BlockError:
        return
    assert header.cluster_size_of(bytes(data)) == parsed.geometry.cluster_size
    assert not parsed.incompatible >> 5


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=HEADER.size, max_size=512))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BlockError):
        parse(noise)
