# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.rings`: packed rings beside split ones, in one run.

One daemon a lane serves a null disk, or a file; each round runs every kind of ring at every
depth. A driver writes a packed ring's descriptors for each request; of split rings there are two
kinds, with descriptors that stay as they are and with descriptors that are written, as drivers do.
With `--tree` daemons of other source trees run in the same rounds, with split rings only: whether
those have become slower shows there.

A rate here is the depth by the mean of the middle half of the latencies, so that it does not matter
whether other programs, or a virtual machine's host, have taken the processors away meanwhile. The
table has the median of the rates, that of the ratios within each round to the first kind, and
the latter's confidence interval of 95 per cent: many short rounds make it narrow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.daemons import Daemon, DaemonError, Disk, running, vhostblk_backend
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import RunError, Workload, run

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A daemon's name, the kind of its ring, and whether requests are indirect.
Point = tuple[str, str, bool]

SPLIT, REWRITTEN, PACKED = "split", "split, rewritten", "packed"

WARM_UP_SECONDS = 0.05


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rings", description=__doc__)
    add = parser.add_argument
    add("--lane", action="append", choices=["express", "python"], help="only these lanes")
    add("--depth", action="append", type=int, help="only these queue depths (1, 32, 128)")
    add("--tree", action="append", type=Path, default=[], help="another source tree, built")
    add("--file", type=Path, help="read this file, which the page cache has, not a null disk")
    add("--pin", action="store_true", help="front-end on processor 0, daemons on processor 1")
    add("--direct", action="store_true", help="direct chains as well as indirect ones")
    add("--seconds", type=float, default=0.5, help="length of a run")
    add("--rounds", type=int, default=5, help="runs of each point")
    return parser


def _start(
    options: argparse.Namespace, lane: str, stack: contextlib.ExitStack
) -> dict[str, Daemon]:
    disk = Disk("null-co", (f"size={1 << 30}",))
    if options.file is not None:
        disk = Disk("file", (f"filename={options.file}",), writable=False)
    daemons = {}
    backend = vhostblk_backend(lane)
    backends = {"": backend}
    for tree in options.tree:
        environment = {**dict(backend.environment), "PYTHONPATH": str(tree.resolve())}
        backends[str(tree)] = replace(backend, environment=tuple(environment.items()))
    for name, chosen in backends.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        daemons[name] = stack.enter_context(running(chosen, disk, folder))
        if options.pin:
            for task in Path(f"/proc/{daemons[name].process.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {1})
    return daemons


def _measure(daemon: Daemon, depth: int, seconds: float, point: Point) -> float:
    _, ring, indirect = point
    daemon.require_alive()
    geometry = Geometry(
        depth=depth, indirect=indirect, packed=ring == PACKED, rewrite=ring == REWRITTEN
    )
    with FrontEnd(daemon.sockets[0], geometry) as front_end:
        run(front_end, Workload(seconds=WARM_UP_SECONDS))
        latency = run(front_end, Workload(seconds=seconds)).latency.middle_mean
    return depth * 1e9 / latency


def _compare(options: argparse.Namespace, lane: str) -> None:
    manners = [True, False] if options.direct else [True]
    with contextlib.ExitStack() as stack:
        daemons = _start(options, lane, stack)
        points: list[Point] = []
        for indirect in manners:
            points += [("", ring, indirect) for ring in (SPLIT, REWRITTEN, PACKED)]
            points += [(name, SPLIT, indirect) for name in daemons if name]
        for depth in options.depth or (1, 32, 128):
            found: dict[Point, list[float]] = {point: [] for point in points}
            for turn in range(options.rounds):
                for point in points if turn % 2 == 0 else reversed(points):
                    iops = _measure(daemons[point[0]], depth, options.seconds, point)
                    found[point].append(iops)
            for point in points:
                _show(lane, depth, point, found)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, from the values' order alone."""
    ordered = sorted(values)
    rank = max(int((len(ordered) - 1.96 * len(ordered) ** 0.5) / 2), 0)
    return ordered[rank], ordered[-1 - rank]


def _show(lane: str, depth: int, point: Point, found: dict[Point, list[float]]) -> None:
    name, ring, indirect = point
    rates, base = found[point], found["", SPLIT, indirect]
    ratios = [mine / its for mine, its in zip(rates, base, strict=True)]
    low, high = median_interval(ratios)
    print(
        f"{lane:8} depth {depth:3}  {ring:16} {'indirect' if indirect else 'direct':8} "
        f"{statistics.median(rates) / 1e3:9.1f} k/s  {statistics.median(ratios):5.3f}"
        f"  ({low:.3f}-{high:.3f})  {name}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    options = make_parser().parse_args(arguments)
    if options.pin:
        os.sched_setaffinity(0, {0})
    try:
        for lane in options.lane or ("express", "python"):
            _compare(options, lane)
    except (DaemonError, ProtocolError, RunError, OSError) as error:
        print(f"benchmarks.rings: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
