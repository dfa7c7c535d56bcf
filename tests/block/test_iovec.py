# SPDX-License-Identifier: Apache-2.0
"""The scatter/gather list against plain bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.io.iovec import IoVec

segments = st.lists(st.binary(max_size=40), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(segments, st.data())
def test_slices_are_those_of_the_joined_bytes(parts: list[bytes], data: st.DataObject) -> None:
    joined = b"".join(parts)
    iov = IoVec.from_buffers([bytearray(part) for part in parts if part])
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    outer = iov.slice(start, stop)
    assert (outer.nbytes, outer.to_bytes()) == (stop - start, joined[start:stop])
    inner_stop = data.draw(st.integers(0, outer.nbytes))
    assert outer.slice(0, inner_stop).to_bytes() == joined[start : start + inner_stop]
    outer.fill(0xAA)
    assert iov.to_bytes() == joined[:start] + b"\xaa" * (stop - start) + joined[stop:]
    assert outer.is_zero() == (start == stop)


@settings(max_examples=50, deadline=None)
@given(st.lists(segments, max_size=4))
def test_joined_lists_are_the_same_memory(lists: list[list[bytes]]) -> None:
    buffers = [[bytearray(part) for part in parts if part] for parts in lists]
    iov = IoVec.concat([IoVec.from_buffers(each) for each in buffers])
    joined = b"".join(b"".join(parts) for parts in lists)
    assert (iov.nbytes, iov.to_bytes()) == (len(joined), joined)
    iov.fill(0xAA)
    assert b"".join(b"".join(parts) for parts in buffers) == b"\xaa" * len(joined)


@settings(max_examples=50, deadline=None)
@given(segments, st.binary(max_size=400))
def test_copying_in(parts: list[bytes], source: bytes) -> None:
    joined = b"".join(parts)
    iov = IoVec.from_buffers([bytearray(part) for part in parts if part])
    if len(source) > len(joined):
        with pytest.raises(ValueError, match="bytes into"):
            iov.copy_from(source)
        return
    iov.copy_from(source)
    assert iov.to_bytes() == source + joined[len(source) :]
    copy = IoVec.allocate(len(joined) + 1)
    iov.copy_to(copy)
    assert copy.to_bytes() == source + joined[len(source) :] + b"\0"


@settings(max_examples=50, deadline=None)
@given(segments, st.data())
def test_segments_by_number(parts: list[bytes], data: st.DataObject) -> None:
    iov = IoVec.from_buffers([bytearray(part) for part in parts])
    low = data.draw(st.integers(0, len(parts) - 1))
    high = data.draw(st.integers(low + 1, len(parts)))
    some = iov.segments_from(low, high)
    joined = b"".join(parts[low:high])
    assert (some.count, some.nbytes, some.to_bytes()) == (high - low, len(joined), joined)
    assert [some.segment(i).to_bytes() for i in range(some.count)] == parts[low:high]
    copy = IoVec.allocate(len(joined) + 2)
    some.copy_out(copy.segment(0).only + 1)
    assert copy.to_bytes() == b"\0" + joined + b"\0"


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (0, 9)])
def test_slices_outside_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="slice"):
        IoVec.allocate(8).slice(start, stop)


def test_allocated_memory_is_aligned() -> None:
    iov = IoVec.allocate(4096, 4096)
    assert iov.aligned(4096)
    assert not iov.slice(1, 4096).aligned(2)
