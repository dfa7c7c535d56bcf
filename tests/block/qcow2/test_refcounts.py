# SPDX-License-Identifier: Apache-2.0
"""Refcounts of all widths, snapshot tables and bitmap directories: to bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.bitmaps import Bitmap, encode_directory, parse_directory
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


bitmap_entries = st.builds(
    Bitmap,
    name=names,
    table_offset=st.integers(0, 1 << 60),
    table_size=st.integers(0, 1 << 20),
    flags=st.integers(0, 7),
    type=st.just(1),
    granularity_bits=st.integers(9, 31),
    extra=names,
)


@given(st.lists(bitmap_entries, min_size=1, max_size=5))
def test_bitmap_directories_are_parsed(entries: list[Bitmap]) -> None:
    assert parse_directory(encode_directory(entries), len(entries)) == entries


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 5))
def test_hostile_bitmap_directories_end_in_an_error(data: bytes, count: int) -> None:
    try:
        found = parse_directory(data, count)
    except BlockError:
        return
    assert len(found) == count
