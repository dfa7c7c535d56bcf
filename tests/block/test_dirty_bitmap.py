# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps against a plain model: a set of granules."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap

if TYPE_CHECKING:
    from collections.abc import Iterable

BITS = st.integers(9, 13)
#: Sizes of some hundred granules, with ends inside granules and words.
SIZES = st.integers(0, 300 << 9)
CHANGES = st.lists(
    st.tuples(st.sampled_from("mmmmuc"), st.integers(0, 420 << 9), st.integers(0, 90 << 9)),
    max_size=12,
)


def granules(offset: int, length: int, size: int, bits: int) -> set[int]:
    stop = min(offset + length, size)
    return set(range(offset >> bits, -(-stop >> bits))) if offset < stop else set()


def sectors(offset: int, length: int) -> range:
    """Return the numbers of the sectors that a range touches."""
    return range(offset >> 9, -(-(offset + length) >> 9))


def changed(
    bitmap: DirtyBitmap, changes: Iterable[tuple[str, int, int]], model: set[int] | None = None
) -> set[int]:
    """Change a bitmap; return what should be set in it."""
    model = set() if model is None else model
    for what, offset, length in changes:
        touched = granules(offset, length, bitmap.size, bitmap.granularity_bits)
        if what == "m":
            bitmap.mark(offset, length)
            model |= touched
        elif what == "u":
            bitmap.unmark(offset, length)
            model -= touched
        else:
            bitmap.clear()
            model.clear()
    return model


def words_of(model: set[int], granules: int) -> bytes:
    """Return what the bitmap should look like, the lowest bit first."""
    return sum(1 << granule for granule in model).to_bytes(max(-(-granules // 64), 1) * 8, "little")


def agree(bitmap: DirtyBitmap, model: set[int]) -> None:
    assert bitmap.words.tobytes() == words_of(model, bitmap.granules)
    assert bitmap.count == len(model) << bitmap.granularity_bits


@given(SIZES, BITS, CHANGES)
def test_what_is_marked_is_dirty(size: int, bits: int, changes: list[tuple[str, int, int]]) -> None:
    bitmap = DirtyBitmap("b", bits, size)
    model = changed(bitmap, changes)
    agree(bitmap, model)
    assert bitmap.sha256() == hashlib.sha256(words_of(model, bitmap.granules)).hexdigest()


@settings(max_examples=50)
@given(SIZES, BITS, CHANGES, st.integers(0, 420 << 9), st.integers(0, 420 << 9))
def test_runs_are_found(
    size: int, bits: int, changes: list[tuple[str, int, int]], start: int, stop: int
) -> None:
    bitmap = DirtyBitmap("b", bits, size)
    model = changed(bitmap, changes)
    found, last = list(bitmap.areas(start, stop)), min(stop, size)
    assert {sector for area in found for sector in sectors(*area)} == {
        sector
        for sector in (sectors(start, last - start) if start < last else ())
        if sector << 9 >> bits in model
    }
    for (offset, length), (after, _) in pairwise(found):
        assert offset + length < after
    if start < size:
        assert bitmap.is_dirty(start) == (start >> bits in model)
    for wanted, answer in ((True, bitmap.next_dirty(start)), (False, bitmap.next_clean(start))):
        first = next(
            (
                max(granule << bits, start)
                for granule in range(start >> bits, bitmap.granules)
                if start < size and (granule in model) == wanted
            ),
            None,
        )
        assert answer == first


@given(SIZES, SIZES, BITS, CHANGES, CHANGES)
def test_bitmaps_follow_the_disk_s_size(
    size: int,
    other: int,
    bits: int,
    changes: list[tuple[str, int, int]],
    later: list[tuple[str, int, int]],
) -> None:
    bitmap = DirtyBitmap("b", bits, size)
    model = changed(bitmap, changes)
    bitmap.resize(other)
    model = {granule for granule in model if granule < -(-other >> bits)}
    agree(bitmap, model)
    agree(bitmap, changed(bitmap, later, model))


@given(SIZES, BITS, BITS, CHANGES, CHANGES)
def test_bitmaps_are_merged(
    size: int,
    bits: int,
    other_bits: int,
    changes: list[tuple[str, int, int]],
    others: list[tuple[str, int, int]],
) -> None:
    bitmap, other = DirtyBitmap("b", bits, size), DirtyBitmap("c", other_bits, size)
    model = changed(bitmap, changes)
    for granule in changed(other, others):
        model |= granules(granule << other_bits, 1 << other_bits, size, bits)
    bitmap.merge(other)
    agree(bitmap, model)


@pytest.mark.parametrize(("bits", "other_bits"), [(9, 31), (31, 9), (9, 20), (20, 9)])
def test_granularities_may_be_far_apart(bits: int, other_bits: int) -> None:
    size = (1 << 33) + 12345
    bitmap, other = DirtyBitmap("b", bits, size), DirtyBitmap("c", other_bits, size)
    for offset in (0, (1 << 32) + 512, size - 1):
        other.mark(offset, 1)
    bitmap.merge(other)
    expected = DirtyBitmap("e", bits, size)
    for area in other.areas():
        expected.mark(*area)
    assert (bitmap.words == expected.words).all()


@settings(max_examples=30)
@given(SIZES, BITS, CHANGES, st.sampled_from([8, 64, 512]))
def test_bitmaps_are_stored_in_parts(
    size: int, bits: int, changes: list[tuple[str, int, int]], step: int
) -> None:
    bitmap, copy = DirtyBitmap("b", bits, size), DirtyBitmap("b", bits, size)
    model = changed(bitmap, changes)
    for start in range(0, bitmap.nbytes, step):
        part = np.zeros(step, np.uint8)
        stored = bitmap.part(start, step)
        part[: len(stored)] = stored
        copy.load_part(start, step, part)
    copy.finish_load()
    agree(copy, model)


@given(st.integers(1, 400 << 9), BITS)
def test_nothing_past_the_end_is_loaded(size: int, bits: int) -> None:
    bitmap = DirtyBitmap("b", bits, size)
    bitmap.load_part(0, bitmap.nbytes, None)
    bitmap.finish_load()
    agree(bitmap, set(range(bitmap.granules)))
