# SPDX-License-Identifier: Apache-2.0
"""Which writing is taken for a stream, and what it is given in advance."""

from __future__ import annotations

from vhostblk.block.drivers.qcow2.ahead import MAX_AHEAD, MIN_STREAM, Streams

BITS = 16
LONG = MIN_STREAM >> BITS
MOST = MAX_AHEAD >> BITS


def test_a_stream_is_given_a_quarter_of_its_length() -> None:
    streams = Streams(BITS)
    assert streams.follow(range(10, 10 + LONG - 1)) == []
    assert streams.follow([10 + LONG - 1]) == [(10 + LONG, LONG // 4)]
    streams.given(10 + LONG, LONG // 4)
    length = LONG + LONG // 4
    assert streams.follow([10 + length]) == [(10 + length + 1, (length + 1) // 4)]


def test_a_stream_that_was_given_nothing_goes_on_where_it_was() -> None:
    streams = Streams(BITS)
    assert streams.follow(range(LONG)) == [(LONG, LONG // 4)]
    assert streams.follow([LONG]) == [(LONG + 1, (LONG + 1) // 4)]


def test_the_longest_stream_has_its_limit() -> None:
    assert Streams(BITS).follow(range(100 * LONG)) == [(100 * LONG, MOST)]


def test_streams_side_by_side_are_told_apart() -> None:
    streams = Streams(BITS)
    found = []
    for step in range(LONG // 8):
        at = range(8 * step, 8 * step + 8)
        found += streams.follow([base + each for base in (0, 10_000, 20_000) for each in at])
    assert found == [(base + LONG, LONG // 4) for base in (0, 10_000, 20_000)]


def test_scattered_writing_is_no_stream_and_is_forgotten() -> None:
    streams = Streams(BITS)
    streams.follow(range(LONG - 1))
    assert streams.follow(range(100_000, 200_000, 2)) == []
    assert streams.follow([LONG - 1]) == []
