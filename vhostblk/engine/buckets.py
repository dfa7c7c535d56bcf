# SPDX-License-Identifier: Apache-2.0
"""Leaky buckets: how fast requests may go, without I/O, clock or queue (QEMU's `util/throttle.c`).

Each limited rate has a bucket. A request pours in one unit an operation or a byte; the bucket leaks
at the average rate. A request may go while no bucket that counts it is over its brim, whatever the
request itself adds: so long requests go, too, and those after them wait the longer for it. The brim
is a tenth of a second at the average rate, so that not every other request has to wait. With a
burst rate it is what comes in at that rate for the burst's length; where that is longer than a
second, another bucket, which leaks at the burst rate, keeps to that within a tenth of a second.

This is what `src/budget.c` does, for where there is no compiled engine. Times are in nanoseconds of
one monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Directions.
READ, WRITE = 0, 1

#: The buckets: total, read and write, of bytes and then of operations.
BYTES_TOTAL, BYTES_READ, BYTES_WRITE, OPS_TOTAL, OPS_READ, OPS_WRITE = range(6)

#: Those that count a request of each direction.
_BYTES = ((BYTES_TOTAL, BYTES_READ), (BYTES_TOTAL, BYTES_WRITE))
_OPS = ((OPS_TOTAL, OPS_READ), (OPS_TOTAL, OPS_WRITE))

_SECOND = 1_000_000_000

#: The longest wait; more than a century.
_WAIT_MAX = 1 << 62


class Budget(Protocol):
    """What a group of throttled nodes may do; shared with the engine, where there is one.

    `others` says whether requests of that direction are waiting. While they are, none may overtake
    them: the engine, which sees only the budget, then hands all up.
    """

    def configure(self, rates: Sequence[tuple[int, int, int]], unit: int, now: int) -> None:
        """Set the average rate, burst rate and burst length of each bucket, and empty them.

        Rates of 0 are no limits. Requests longer than `unit` bytes, if that is not 0, count as
        several operations.
        """

    def take(self, direction: int, size: int, now: int, others: bool) -> int:
        """Account for a request that may go now, and return 0; else return how long to wait."""

    def charge(self, direction: int, size: int, others: bool) -> None:
        """Account for a request that goes in any case."""


class _Bucket:
    """One bucket."""

    __slots__ = ("avg", "brim", "burst", "burst_brim", "burst_level", "level")

    def __init__(self, avg: int, burst: int, length: int) -> None:
        self.avg = float(avg)
        self.brim = float(burst * length) if burst else avg / 10
        #: The rate that the second bucket leaks at; 0: there is none.
        self.burst = float(burst) if length > 1 else 0.0
        self.burst_brim = burst / 10
        self.level = 0.0
        self.burst_level = 0.0

    def leak(self, elapsed: float) -> None:
        self.level = max(self.level - self.avg * elapsed / _SECOND, 0.0)
        if self.burst:
            self.burst_level = max(self.burst_level - self.burst * elapsed / _SECOND, 0.0)

    def wait(self) -> int:
        if self.level > self.brim:
            return _wait(self.level - self.brim, self.avg)
        if self.burst and self.burst_level > self.burst_brim:
            return _wait(self.burst_level - self.burst_brim, self.burst)
        return 0

    def pour(self, amount: float) -> None:
        self.level += amount
        if self.burst:
            self.burst_level += amount


def _wait(excess: float, rate: float) -> int:
    return min(int(excess * _SECOND / rate), _WAIT_MAX)


class LeakyBuckets:
    """A budget in Python alone."""

    def __init__(self) -> None:
        #: None where a rate has no limit.
        self._buckets: list[_Bucket | None] = [None] * 6
        self._unit = 0
        self._leaked = 0

    def configure(self, rates: Sequence[tuple[int, int, int]], unit: int, now: int) -> None:
        """Set the limits; see `Budget`."""
        self._buckets = [_Bucket(*rate) if rate[0] else None for rate in rates]
        self._unit = unit
        self._leaked = now

    def take(self, direction: int, size: int, now: int, others: bool) -> int:
        """Account for a request that may go now; see `Budget`."""
        self._leak(now)
        wait = 0
        for index in (*_BYTES[direction], *_OPS[direction]):
            bucket = self._buckets[index]
            if bucket is not None:
                wait = max(wait, bucket.wait())
        if not wait:
            self.charge(direction, size, others)
        return wait

    def charge(self, direction: int, size: int, others: bool) -> None:
        """Account for a request that goes in any case."""
        operations = size / self._unit if self._unit and size > self._unit else 1.0
        for indices, amount in ((_BYTES, float(size)), (_OPS, operations)):
            for index in indices[direction]:
                bucket = self._buckets[index]
                if bucket is not None:
                    bucket.pour(amount)

    def _leak(self, now: int) -> None:
        elapsed = now - self._leaked
        if elapsed <= 0:
            return
        self._leaked = now
        for bucket in self._buckets:
            if bucket is not None:
                bucket.leak(elapsed)
