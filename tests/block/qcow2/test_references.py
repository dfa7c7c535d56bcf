# SPDX-License-Identifier: Apache-2.0
"""Counting references, wherever they lead to, and ranges of clusters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.gather import clusters_of
from vhostblk.block.drivers.qcow2.references import References
from vhostblk.block.drivers.qcow2.spans import spans

OFFSETS = st.integers(0, 5000) | st.integers(0, 1 << 62)
CLUSTERS = st.integers(0, 3000) | st.integers(0, 1 << 47)
RANGES = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500)), max_size=8)


@given(st.integers(9, 21), st.lists(st.tuples(OFFSETS, st.integers(0, 10_000))))
def test_spans_are_those_of_the_ranges_one_by_one(bits: int, ranges: list[tuple[int, int]]) -> None:
    expected = Counter(
        cluster
        for offset, length in ranges
        if length
        for cluster in range(offset >> bits, (offset + length - 1 >> bits) + 1)
    )
    found = clusters_of(bits, ranges)
    assert found.listed().tolist() == sorted(expected)
    numbers = np.array(sorted({*expected, *(each + 1 for each in expected), 0}), np.int64)
    assert found.of(numbers).tolist() == [expected[each] for each in numbers.tolist()]


def _spans(ranges: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.array([start for start, _ in ranges], np.int64)
    return starts, starts + np.array([length for _, length in ranges], np.int64)


@given(
    st.sampled_from([0, 1, 512, 1000, 5000]),
    st.lists(st.tuples(st.lists(CLUSTERS, max_size=20), st.integers(1, 1 << 33), st.booleans())),
    RANGES,
    st.integers(0, 12),
)
def test_counts_are_those_of_a_dictionary(
    near: int,
    added: list[tuple[list[int], int, bool]],
    ranges: list[tuple[int, int]],
    bits: int,
) -> None:
    """`near`: how many of the clusters are counted in an array."""
    references, expected = References(near), Counter[int]()
    references.add_ranges(spans(*_spans(ranges)))
    for start, length in ranges:
        expected.update(range(start, start + length))
    for clusters, weight, one_by_one in added:
        array = np.array(clusters, np.int64)
        references.add(array, np.full(len(array), weight) if one_by_one else weight)
        for cluster in clusters:
            expected[cluster] += weight
    some = np.array([*expected, 7, 4000, 1 << 40], np.int64)
    assert references.of(some).tolist() == [expected[each] for each in some.tolist()]
    assert references.most == max(expected.values(), default=0)
    assert references.total >= len(expected)
    groups = references.blocks(bits).tolist()
    assert groups == sorted(set(groups))
    assert {each >> bits for each in expected} <= {*groups}
    for group in groups[:20]:
        first, stop = group << bits, group + 1 << bits
        window = references.window(first, stop).tolist()
        assert window == [expected[each] for each in range(first, stop)]
        assert references.distinct(first, stop) == sum(each > 0 for each in window)


def test_memory_goes_by_the_references_and_not_by_where_they_lead_to() -> None:
    far = References(0)
    far.add(np.arange(0, 1 << 47, 1 << 40))
    far.add_ranges(spans(np.array([1 << 41]), np.array([1 << 46])))
    assert far.distinct(0, 1 << 47) == (1 << 46) - (1 << 41) + 2 + 128 - 64
    assert far.untidy is False


@pytest.mark.parametrize("near", [0, 1 << 20])
def test_references_can_be_taken_back(near: int) -> None:
    references = References(near)
    references.add(np.arange(1000, 2000))
    references.add(np.arange(1500, 2000), -1)
    assert references.window(1000, 2000).tolist() == [1] * 500 + [0] * 500
    assert references.most == 1
