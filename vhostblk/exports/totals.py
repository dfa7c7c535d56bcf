# SPDX-License-Identifier: Apache-2.0
"""Sums over the queues of an export, without numpy, which the first guest loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COUNTERS = ("invalid", "upcalls", "sweeps", "notified", "kicks")
KINDS = ("read", "write", "flush", "unmap")
KIND_COUNTERS = ("operations", "bytes", "failed", "total_ns", "merged")

#: Buckets of a latency histogram; the n-th counts requests that took at least 2**n ns and less than
#: 2**(n+1).
BUCKETS = 32


def nothing() -> dict[str, Any]:
    """Return the statistics of a new queue, for export types that count for themselves."""
    counted: dict[str, Any] = dict.fromkeys(COUNTERS, 0)
    for kind in KINDS:
        counted[kind] = {**dict.fromkeys(KIND_COUNTERS, 0), "latency": [0] * BUCKETS}
    return counted


def total(queues: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of queues' statistics, each in the form of `nothing`."""
    described = list(queues)
    summed: dict[str, Any] = {name: sum(queue[name] for queue in described) for name in COUNTERS}
    for kind in KINDS:
        summed[kind] = total_of_kinds(queue[kind] for queue in described)
    return summed


def total_of_kinds(kinds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of several counts: of one kind in several queues, or of several kinds."""
    described = list(kinds)
    summed: dict[str, Any] = {
        name: sum(counted[name] for counted in described) for name in KIND_COUNTERS
    }
    summed["latency"] = [
        sum(counted["latency"][bucket] for counted in described) for bucket in range(BUCKETS)
    ]
    return summed
