# SPDX-License-Identifier: Apache-2.0
"""Which writing is taken for a stream, and what it is given in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2.ahead import MAX_AHEAD, MIN_STREAM, Streams

if TYPE_CHECKING:
    from collections.abc import Iterable

BITS = 16
LONG = MIN_STREAM >> BITS
MOST = MAX_AHEAD >> BITS


def follow(streams: Streams, clusters: Iterable[int]) -> list[tuple[int, int]]:
    """Return what `follow` yields if no clusters are given."""
    return list(streams.follow(clusters))


def test_a_stream_is_given_a_quarter_of_its_length() -> None:
    streams = Streams(BITS)
    assert follow(streams, range(10, 10 + LONG - 1)) == []
    assert follow(streams, [10 + LONG - 1]) == [(10 + LONG, LONG // 4)]
    streams.given(10 + LONG, LONG // 4)
    length = LONG + LONG // 4
    assert follow(streams, [10 + length]) == [(10 + length + 1, (length + 1) // 4)]


def test_a_stream_that_was_given_nothing_goes_on_where_it_was() -> None:
    streams = Streams(BITS)
    assert follow(streams, range(LONG)) == [(LONG, LONG // 4)]
    assert follow(streams, [LONG]) == [(LONG + 1, (LONG + 1) // 4)]


def test_the_longest_stream_has_its_limit() -> None:
    assert follow(Streams(BITS), range(100 * LONG)) == [(100 * LONG, MOST)]


def test_streams_side_by_side_are_told_apart() -> None:
    streams = Streams(BITS)
    found = []
    for step in range(LONG // 8):
        at = range(8 * step, 8 * step + 8)
        found += follow(streams, [base + each for base in (0, 10_000, 20_000) for each in at])
    assert found == [(base + LONG, LONG // 4) for base in (0, 10_000, 20_000)]


def test_scattered_writing_is_no_stream_and_is_forgotten() -> None:
    streams = Streams(BITS)
    follow(streams, range(LONG - 1))
    assert follow(streams, range(100_000, 200_000, 2)) == []
    assert follow(streams, [LONG - 1]) == []


def test_a_stream_that_is_given_all_up_to_the_next_one_goes_on_there() -> None:
    streams = Streams(BITS)
    found = []
    for end, count in streams.follow([*range(LONG), *range(LONG + 3, LONG + 5)]):
        found.append((end, count))
        streams.given(end, min(count, 3) if end == LONG else count)
    assert found == [(LONG, LONG // 4), (LONG + 5, (LONG + 5) // 4)]
    length = LONG + 5 + (LONG + 5) // 4
    assert follow(streams, [length]) == [(length + 1, (length + 1) // 4)]
