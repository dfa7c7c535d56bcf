# SPDX-License-Identifier: Apache-2.0
"""Latency histograms with the buckets of `src/histogram.c`: 32 to each power of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUB_BUCKETS = 32
BUCKETS = 1920


def bucket_floor(bucket: int) -> int:
    """Smallest value that falls into a bucket."""
    if bucket < 2 * SUB_BUCKETS:
        return bucket
    shift = bucket // SUB_BUCKETS - 1
    return (bucket - shift * SUB_BUCKETS) << shift


def bucket_of(value: int) -> int:
    """Bucket that a value falls into."""
    if value < 2 * SUB_BUCKETS:
        return value
    shift = value.bit_length() - SUB_BUCKETS.bit_length()
    return shift * SUB_BUCKETS + (value >> shift)


@dataclass(frozen=True)
class Histogram:
    """How many values fell into each bucket."""

    counts: Sequence[int] = field(default_factory=lambda: [0] * BUCKETS)

    @classmethod
    def merge(cls, parts: Iterable[Histogram]) -> Histogram:
        """Add histograms up."""
        total = [0] * BUCKETS
        for part in parts:
            for bucket, count in enumerate(part.counts):
                if count:
                    total[bucket] += count
        return cls(total)

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Mean of the values, each taken as the middle of its bucket; 0 for none."""
        total = sum(
            count * (bucket_floor(bucket) + bucket_floor(bucket + 1) - 1) / 2
            for bucket, count in enumerate(self.counts)
            if count
        )
        return total / self.count if self.count else 0.0

    @property
    def middle_mean(self) -> float:
        """Mean of the middle half of the values, whatever the outliers are; 0 for none."""
        first, last = self.count / 4, self.count * 3 / 4
        total = weight = before = 0.0
        for bucket, count in enumerate(self.counts):
            taken = max(min(before + count, last) - max(before, first), 0.0)
            before += count
            weight += taken
            total += taken * (bucket_floor(bucket) + bucket_floor(bucket + 1) - 1) / 2
        return total / weight if weight else 0.0

    def percentile(self, percent: float) -> int:
        """Return the largest value that the bucket of the percentile may hold; 0 for no values."""
        remaining = self.count * percent / 100
        last = 0
        for bucket, count in enumerate(self.counts):
            if not count:
                continue
            last = bucket_floor(bucket + 1) - 1
            remaining -= count
            if remaining <= 0:
                break
        return last
