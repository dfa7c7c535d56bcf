# SPDX-License-Identifier: Apache-2.0
"""Statistics of a queue, whichever lane ran it.

The engine keeps `struct vb_stats` for each queue and Python reads it without a lock; the Python
lane keeps the same record itself. An export adds up what a queue's successive lives left behind.
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.engine.layouts import STAT_KINDS, STATS
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Buckets of a latency histogram.
BUCKETS = 32

_KIND_OF_TYPE: dict[int, int] = {
    RequestType.IN: 0,
    RequestType.OUT: 1,
    RequestType.FLUSH: 2,
    RequestType.DISCARD: 3,
    RequestType.WRITE_ZEROES: 3,
    RequestType.SECURE_ERASE: 3,
    RequestType.ZONE_APPEND: 1,
}

#: The same for reads and writes, as a table.
_KIND_OF_TRANSFER = np.array([_KIND_OF_TYPE[RequestType.IN], _KIND_OF_TYPE[RequestType.OUT]])


def _bucket_of(taken: int) -> int:
    return min(max(taken.bit_length() - 1, 0), BUCKETS - 1)


def empty() -> NDArray[np.void]:
    """Return zeroed statistics, a `STATS` array of shape (1,)."""
    return np.zeros(1, STATS)


def add(total: NDArray[np.void], more: NDArray[np.void]) -> None:
    """Add `more` to `total`, field by field."""
    for name in STATS.names or ():
        total[name] += more[name]


def describe(stats: NDArray[np.void]) -> dict[str, Any]:
    """Return statistics as plain Python: counters, and a dictionary for each kind of request."""
    record = stats[0]
    described: dict[str, Any] = {
        name: int(record[name]) for name in ("invalid", "upcalls", "sweeps", "notified", "kicks")
    }
    for index, kind in enumerate(STAT_KINDS):
        described[kind] = {
            "operations": int(record["operations"][index]),
            "bytes": int(record["bytes"][index]),
            "failed": int(record["failed"][index]),
            "total_ns": int(record["total_ns"][index]),
            "merged": int(record["merged"][index]),
            "latency": record["latency"][index].tolist(),
        }
    return described


class Counters:
    """Counts requests on the Python lane, in plain integers: numpy scalars cost ten times that."""

    def __init__(self) -> None:
        kinds = range(len(STAT_KINDS))
        self._operations = [0 for _ in kinds]
        self._bytes = [0 for _ in kinds]
        self._failed = [0 for _ in kinds]
        self._total_ns = [0 for _ in kinds]
        self._latency = [[0] * BUCKETS for _ in kinds]
        self.invalid = 0
        self.sweeps = 0
        self.notified = 0
        self.kicks = 0

    def count(self, succeeded: list[tuple[int, int, int]]) -> None:
        """Count requests that have succeeded now.

        Each is a virtio type, its bytes and the `perf_counter_ns()` at which it began. Requests of
        one burst are alike, mostly, so like ones are counted together.
        """
        now = perf_counter_ns()
        for (kind, nbytes, began), number in Counter(succeeded).items():
            index = _KIND_OF_TYPE.get(kind)
            if index is None:
                continue
            taken = now - began
            self._operations[index] += number
            self._bytes[index] += nbytes * number
            self._total_ns[index] += taken * number
            self._latency[index][_bucket_of(taken)] += number

    def count_transfers(
        self, types: NDArray[np.uint32], nbytes: NDArray[np.uint64], began: int
    ) -> None:
        """Count reads and writes that have succeeded now and began together; arrays (n,)."""
        if not len(types):
            return
        taken = perf_counter_ns() - began
        bucket = _bucket_of(taken)
        indices = _KIND_OF_TRANSFER.take(types)
        numbers = np.bincount(indices, minlength=len(STAT_KINDS)).tolist()
        sums = np.bincount(indices, nbytes, minlength=len(STAT_KINDS)).tolist()
        for index, (number, total) in enumerate(zip(numbers, sums, strict=True)):
            if number:
                self._operations[index] += number
                self._bytes[index] += int(total)
                self._total_ns[index] += taken * number
                self._latency[index][bucket] += number

    def count_failed(self, kind: int) -> None:
        """Count a request that failed, or that was of no known type."""
        index = _KIND_OF_TYPE.get(kind)
        if index is not None:
            self._failed[index] += 1
        else:
            self.invalid += 1

    def snapshot(self) -> NDArray[np.void]:
        """Return a `STATS` array of shape (1,)."""
        stats = empty()
        stats["operations"][0] = self._operations
        stats["bytes"][0] = self._bytes
        stats["failed"][0] = self._failed
        stats["total_ns"][0] = self._total_ns
        stats["latency"][0] = self._latency
        stats["invalid"] = self.invalid
        stats["sweeps"] = self.sweeps
        stats["notified"] = self.notified
        stats["kicks"] = self.kicks
        return stats
