# SPDX-License-Identifier: Apache-2.0
"""L2 entries: whole arrays mean what single entries mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.layout import COMPRESSED, COPIED, ZERO, Geometry
from vhostblk.block.drivers.qcow2.mapping import (
    OVERWRITE,
    READ,
    READ_ZERO,
    Kind,
    map_entries,
    take_apart,
)

LIMIT = 1 << 24
FORBIDDEN = np.array([0, 0x10000, 0x30000], np.int64)


def geometries() -> st.SearchStrategy[Geometry]:
    return st.builds(
        Geometry,
        version=st.sampled_from([2, 3]),
        cluster_bits=st.just(16),
        refcount_order=st.just(4),
        extended_l2=st.booleans(),
        external_data=st.booleans(),
    ).filter(lambda geometry: geometry.version == 3 or not geometry.extended_l2)


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(
        lambda cluster, flags: cluster << 16 | flags,
        st.integers(0, 300),
        st.sampled_from([0, COPIED, ZERO, COPIED | ZERO, COMPRESSED]),
    ),
)
bitmaps = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1).map(lambda mask: mask | (~mask & 0xFFFF_FFFF) << 32),
    st.sampled_from([0, 0xFFFF_FFFF, 0xFFFF_FFFF << 32]),
)


def expected(
    geometry: Geometry, word: int, bitmap: int, sub: int, cluster: int, has_backing: bool
) -> int:
    """Work an extent map entry out from the single entry; 0 is always right."""
    entry = take_apart(geometry, word, bitmap)
    kind = entry.kind(sub)
    if kind is Kind.ZERO or (kind is Kind.UNALLOCATED and not has_backing):
        return READ_ZERO
    host = entry.host
    if kind is not Kind.DATA or host & 0xFFFF or host + 0x10000 > LIMIT or host in FORBIDDEN:
        return 0
    if geometry.external_data and host != cluster << 16:
        return 0
    flags = READ | (OVERWRITE if entry.copied else 0)
    return host + (sub << geometry.subcluster_bits) | flags


@settings(max_examples=400, deadline=None)
@given(
    geometries(),
    st.lists(st.tuples(words, bitmaps), min_size=1, max_size=6),
    st.integers(0, 20),
    st.booleans(),
)
def test_arrays_mean_what_entries_mean(
    geometry: Geometry, entries: list[tuple[int, int]], first: int, has_backing: bool
) -> None:
    flat = [part for pair in entries for part in (pair if geometry.extended_l2 else pair[:1])]
    mapped = map_entries(
        geometry,
        np.array(flat, ">u8"),
        first,
        base=0,
        limit=LIMIT,
        has_backing=has_backing,
        forbidden=FORBIDDEN,
    )
    per_cluster = 32 if geometry.extended_l2 else 1
    assert len(mapped) == per_cluster * len(entries)
    for index, (word, bitmap) in enumerate(entries):
        for sub in range(per_cluster):
            want = expected(geometry, word, bitmap, sub, first + index, has_backing)
            assert int(mapped[index * per_cluster + sub]) == want


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@given(st.data())
def test_compressed_entries_say_where_the_data_is(bits: int, data: st.DataObject) -> None:
    geometry = Geometry(3, bits, 4, False, False)
    offset = data.draw(st.integers(0, (1 << 40)))
    length = data.draw(st.integers(1, 1 << bits))
    start, available = geometry.compressed_range(geometry.compressed_entry(offset, length))
    assert start == offset
    assert length <= available < length + 512
