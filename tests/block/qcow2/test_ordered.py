# SPDX-License-Identifier: Apache-2.0
"""Sorted arrays of cluster numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.ordered import grouped, in_both, repeated, runs, sorted_once

NUMBERS = st.lists(st.integers(0, 20) | st.integers(0, (1 << 62) - 1))


@given(NUMBERS)
def test_once_and_repeated(numbers: list[int]) -> None:
    counts = Counter(numbers)
    array = np.array(numbers, np.int64)
    assert sorted_once(array).tolist() == sorted(counts)
    again = sorted(number for number, count in counts.items() if count > 1)
    assert repeated(array).tolist() == again
    assert array.tolist() == numbers


@given(st.sets(st.integers(0, 40)))
def test_runs(numbers: set[int]) -> None:
    found = runs(np.array(sorted(numbers), np.int64))
    listed = [number for first, count in found for number in range(first, first + count)]
    assert listed == sorted(numbers)
    assert all(first + count not in numbers for first, count in found)


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_in_both(first: set[int], second: set[int]) -> None:
    arrays = [np.array([*each], np.int64) for each in (first, second)]
    assert in_both(*arrays).tolist() == sorted(first & second)


@given(st.lists(st.tuples(st.integers(0, 20) | st.integers(0, (1 << 62) - 1), st.booleans())))
def test_grouped(pairs: list[tuple[int, bool]]) -> None:
    numbers = np.array([number for number, _ in pairs], np.int64)
    once, again, flagged = grouped(numbers, np.array([flag for _, flag in pairs], bool))
    counts = Counter(numbers.tolist())
    assert once.tolist() == sorted(counts)
    assert again.tolist() == [counts[number] > 1 for number in sorted(counts)]
    assert flagged.tolist() == [(number, True) in pairs for number in sorted(counts)]
