# SPDX-License-Identifier: Apache-2.0
"""Ranges of numbers that may overlap, as arrays of starts and stops.

An image's snapshots may have tens of thousands of long tables, all at the same offset. As ranges
they take little memory, whatever their length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Spans(NamedTuple):
    """Sorted ranges [start, stop) that don't overlap, and the number of times each is covered."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    counts: NDArray[np.int64]

    def near(self, first: int, stop: int) -> Spans:
        """Return the parts between two numbers."""
        low = int(np.searchsorted(self.stops, first, "right"))
        high = int(np.searchsorted(self.starts, stop, "left"))
        return Spans(
            np.maximum(self.starts[low:high], first),
            np.minimum(self.stops[low:high], stop),
            self.counts[low:high],
        )

    def beginning(self, most: int) -> Spans:
        """Return the first ranges, with at most this many numbers in total."""
        fit = np.cumsum(self.stops - self.starts) <= most
        return Spans(self.starts[fit], self.stops[fit], self.counts[fit])

    def listed(self) -> NDArray[np.int64]:
        """Return all numbers."""
        lengths = self.stops - self.starts
        before = np.cumsum(lengths) - lengths
        return np.repeat(self.starts - before, lengths) + np.arange(lengths.sum())

    def of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of times each number is covered."""
        if not len(self.starts):
            return np.zeros(len(numbers), np.int64)
        places = np.searchsorted(self.starts, numbers, "right") - 1
        inside = (places >= 0) & (numbers < self.stops[places])
        return np.where(inside, self.counts[places], 0)


def spans(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Spans:
    """Divide ranges so that they don't overlap; empty ranges are dropped."""
    there = starts < stops
    starts, stops = starts[there], stops[there]
    edges = np.concatenate([starts, stops])
    steps = np.ones(len(edges), np.int64)
    steps[len(starts) :] = -1
    order = np.argsort(edges, kind="stable")
    edges, depth = edges[order], np.cumsum(steps[order])
    kept = (edges[1:] > edges[:-1]) & (depth[:-1] > 0)
    return Spans(edges[:-1][kept], edges[1:][kept], depth[:-1][kept])
