# SPDX-License-Identifier: Apache-2.0
"""Which clusters ranges of bytes take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.references import cluster_spans

OFFSETS = st.integers(0, 5000) | st.integers(0, 1 << 62)


@given(st.integers(9, 21), st.lists(st.tuples(OFFSETS, st.integers(0, 10_000))))
def test_spans_are_those_of_the_ranges_one_by_one(bits: int, ranges: list[tuple[int, int]]) -> None:
    expected = [
        cluster
        for offset, length in ranges
        if offset and length
        for cluster in range(offset >> bits, (offset + length - 1 >> bits) + 1)
    ]
    offsets, lengths = [each[0] for each in ranges], [each[1] for each in ranges]
    assert cluster_spans(bits, offsets, lengths).tolist() == expected
