# SPDX-License-Identifier: Apache-2.0
"""Refcounts of all widths, snapshot tables and bitmap directories: to bytes and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.bitmaps import (
    Bitmap,
    encode_directory,
    parse_directory,
    table_is_good,
)
from vhostblk.block.drivers.qcow2.layout import Geometry
from vhostblk.block.drivers.qcow2.refcounts import pack, unpack
from vhostblk.block.drivers.qcow2.snapshots import (
    Incomplete,
    Snapshot,
    encode_table,
    parse_table,
)
from vhostblk.block.errors import BlockError


@pytest.mark.parametrize("order", range(7))
@given(raw=st.binary(min_size=64, max_size=64))
def test_packing_undoes_unpacking(order: int, raw: bytes) -> None:
    values = unpack(np.frombuffer(raw, np.uint8), order)
    assert len(values) == 512 >> order
    assert pack(values, order).tobytes() == raw


def test_narrow_counts_begin_with_the_low_bits() -> None:
    raw = np.array([0b11_00_10_01], np.uint8)
    assert unpack(raw, 1).tolist() == [1, 2, 0, 3]
    assert unpack(raw, 0).tolist() == [1, 0, 0, 1, 0, 0, 1, 1]
    assert unpack(raw, 2).tolist() == [9, 12]


names = st.binary(max_size=20)
snapshots = st.builds(
    Snapshot,
    id=names,
    name=names,
    l1_offset=st.integers(0, 1 << 60),
    l1_size=st.integers(0, 1 << 31),
    disk_size=st.integers(0, 1 << 60),
    vm_state_size=st.integers(0, 1 << 40),
    date_sec=st.integers(0, 1 << 31),
    icount=st.integers(0, 1 << 63),
)


@given(st.lists(snapshots, max_size=5))
def test_snapshot_tables_are_parsed(entries: list[Snapshot]) -> None:
    data = encode_table(entries)
    table = parse_table(data, len(entries), 0)
    assert table.entries == entries
    assert table.table_bytes <= len(data)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 10))
def test_hostile_snapshot_tables_end_in_an_error(data: bytes, count: int) -> None:
    try:
        table = parse_table(data, count, 0)
    except (BlockError, Incomplete):
        return
    assert len(table.entries) == count


GEOMETRY = Geometry(3, 16, 4, extended_l2=False, external_data=False)
bitmap_entries = st.builds(
    Bitmap,
    name=names.filter(lambda name: b"\0" not in name),
    table_offset=st.integers(1, 1 << 30).map(lambda cluster: cluster << 16),
    table_size=st.integers(2, 1 << 13),
    flags=st.integers(0, 3),
    granularity_bits=st.integers(9, 31),
)


@given(st.lists(bitmap_entries, min_size=1, max_size=5))
def test_bitmap_directories_are_parsed(entries: list[Bitmap]) -> None:
    data = encode_directory(entries)
    assert parse_directory(data, len(entries), GEOMETRY, 1 << 29) == entries
    for count, text in ((len(entries) - 1, "^More"), (len(entries) + 1, "^Less")):
        with pytest.raises(BlockError, match=text):
            parse_directory(data, count, GEOMETRY, 1 << 29)


@pytest.mark.parametrize(
    "members",
    [
        {"table_offset": 0},
        {"table_offset": 4096},
        {"table_size": 0},
        {"table_size": (1 << 13) + 1},
        {"table_size": 1},
        {"flags": 4},
        {"granularity_bits": 8},
        {"granularity_bits": 32},
        {"name": b"x" * 1024},
    ],
)
def test_entries_of_a_directory_that_can_t_be_are_refused(members: dict[str, Any]) -> None:
    good = Bitmap(b"b", 1 << 16, 2, 0, 9)
    bad = replace(good, **members)
    with pytest.raises(BlockError, match=r"^Bitmap '[bx]*' doesn't satisfy the constraints$"):
        parse_directory(encode_directory([good, bad]), 2, GEOMETRY, 1 << 29)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 5))
def test_hostile_bitmap_directories_end_in_an_error(data: bytes, count: int) -> None:
    try:
        found = parse_directory(data, count, GEOMETRY, 1 << 20)
    except BlockError:
        return
    assert len(found) == count


@given(st.lists(st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 511)), max_size=4))
def test_tables_of_bitmaps_are_checked(words: list[int]) -> None:
    expected = all(
        not word & 0xFF00_0000_0000_01FE
        and not word & 0x00FF_FFFF_FFFF_FE00 & 0xFFFF
        and (word < 1 << 16 or not word & 1)
        for word in words
    )
    assert table_is_good(np.array(words, np.uint64), GEOMETRY) == expected
