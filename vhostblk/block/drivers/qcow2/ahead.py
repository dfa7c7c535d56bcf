# SPDX-License-Identifier: Apache-2.0
"""Seeing sequential writing coming, so that its clusters are there before their turn.

Who writes one cluster after the other is given some more behind the last one, as holes of the file:
what follows then overwrites, which the engine does on its own. What a stream gets in advance grows
with its length and is a quarter of it at most, so images stay as thin as their users make them;
what is never written costs an L2 entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: From so many bytes on, one behind the other, it is a stream.
MIN_STREAM = 4 << 20
#: A stream is given so many bytes at most.
MAX_AHEAD = 16 << 20
#: Streams side by side that are remembered.
_STREAMS = 16


class Streams:
    """Where writing may go on, by what was allocated last."""

    def __init__(self, cluster_bits: int) -> None:
        self._bits = cluster_bits
        #: The cluster after the last one, and how many there have been.
        self._lengths: dict[int, int] = {}

    def follow(self, clusters: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Note sorted clusters that were just allocated; yield (end, count) for each stream.

        `count` clusters from `end` on may be allocated in advance. If they were, call `given`
        before the next iteration: they may reach up to the start of the next run.
        """
        lengths = self._lengths
        first = end = -1
        for cluster in [*clusters, -1]:
            if cluster != end:
                if end >= 0:
                    length = lengths[end] = lengths.pop(first, 0) + end - first
                    if length << self._bits >= MIN_STREAM:
                        yield end, min(length // 4, MAX_AHEAD >> self._bits)
                first = cluster
            end = cluster + 1
        while len(lengths) > _STREAMS:
            del lengths[next(iter(lengths))]

    def given(self, end: int, count: int) -> None:
        """Note that a stream, which was to go on at `end`, has been given `count` clusters."""
        self._lengths[end + count] = self._lengths.pop(end, 0) + count
