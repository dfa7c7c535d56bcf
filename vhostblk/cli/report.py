# SPDX-License-Identifier: Apache-2.0
"""The table with the statistics of exports that SIGUSR1 prints."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vhostblk.exports.totals import KINDS, total_of_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vhostblk.daemon import Daemon

logger = logging.getLogger(__name__)

_FORMAT = "{:<16} {:>12} {:>12} {:>8} {:>10} {:>10}"

_UNITS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1))


def log_statistics(daemon: Daemon) -> None:
    """Write the table to the log, regardless of its level."""
    logger.setLevel(logging.INFO)
    for line in table(daemon.statistics()):
        logger.info("%s", line)


def table(statistics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Return the lines of the table, for `Daemon.statistics()`."""
    if not statistics:
        yield "no exports"
        return
    yield _FORMAT.format("export", "requests", "MiB", "failed", "average", "99% below")
    for export_id, counted in statistics.items():
        yield _row(export_id, counted["total"])


def _row(export_id: str, counted: Mapping[str, Any]) -> str:
    requests = total_of_kinds(counted[kind] for kind in KINDS)
    moved = counted["read"]["bytes"] + counted["write"]["bytes"]
    # Invalid requests belong to no kind.
    failed = requests["failed"] + counted["invalid"]
    done = requests["operations"]
    return _FORMAT.format(
        export_id,
        done + failed,
        f"{moved / (1 << 20):.1f}",
        failed,
        duration(requests["total_ns"] / done) if done else "-",
        duration(percentile(requests["latency"], 99)) if done else "-",
    )


def percentile(histogram: list[int], percent: int) -> int:
    """Return a power of two in ns: at least this share of the requests took less time."""
    wanted = -(-sum(histogram) * percent // 100)
    seen = 0
    for bucket, count in enumerate(histogram):
        seen += count
        if seen >= wanted:
            return 2 << bucket
    raise ValueError("an empty histogram")


def duration(nanoseconds: float) -> str:
    """Return a duration as text, with at least two digits and a unit."""
    unit, size = next(((unit, size) for unit, size in _UNITS if nanoseconds >= size), _UNITS[-1])
    number = nanoseconds / size
    return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
