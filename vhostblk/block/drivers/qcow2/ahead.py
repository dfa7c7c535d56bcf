# SPDX-License-Identifier: Apache-2.0
"""Detection of sequential writes, to allocate their clusters in advance.

A stream that writes one cluster after the other gets more clusters behind the last one, as holes of
the file. The writes that follow are overwrites, which the engine does on its own. The number of
clusters in advance grows with the stream's length and is at most a quarter of it, so images stay
thin. A cluster that is never written costs only an L2 entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The minimum length of a stream in bytes.
MIN_STREAM = 4 << 20
#: The maximum number of bytes to allocate in advance for a stream.
MAX_AHEAD = 16 << 20
#: The number of concurrent streams to remember.
_STREAMS = 16


class Streams:
    """The sequential streams, by the cluster at which each will continue."""

    def __init__(self, cluster_bits: int) -> None:
        self._bits = cluster_bits
        #: By the cluster after the last one: the number of clusters of the stream.
        self._lengths: dict[int, int] = {}

    def follow(self, clusters: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Record sorted clusters that were just allocated; yield (end, count) for each stream.

        `count` clusters from `end` on may be allocated in advance. If they were, call `given`
        before the next iteration: they may extend to the start of the next run.
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
        """Record that a stream at `end` has got `count` clusters in advance."""
        self._lengths[end + count] = self._lengths.pop(end, 0) + count
