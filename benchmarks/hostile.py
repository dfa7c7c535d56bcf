# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.hostile`: what one export is like while another's front-end misbehaves.

Both are null disks of one daemon, on one iothread, which is the worst that can be. The front-end
that is measured asks for so many requests a second, and sleeps in between: does it get them all,
and how late? Peers take what is left of the processors (nice 19), so that it is the daemon's work
for them that is seen. One merely spins, and `honest` is one that works as hard as it can.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.daemons import ROOT, Daemon, DaemonError, Disk, running, vhostblk_backend
from benchmarks.hostile_peers import PEERS
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import Result, RunError, Workload, run
from benchmarks.report import format_table, thousands

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    add = parser.add_argument
    add("--lane", action="append", choices=["express", "python"], help="only these lanes")
    add("--peer", action="append", choices=list(PEERS), help="only these peers")
    add("--rate", type=int, default=5000, help="requests a second")
    add("--seconds", type=float, default=0.7, help="length of a run")
    add("--rounds", type=int, default=3, help="runs beside each peer")
    return parser


@contextlib.contextmanager
def beside(name: str, path: Path) -> Iterator[None]:
    """Have a peer misbehave meanwhile."""
    command = [sys.executable, "-m", "benchmarks.hostile_peers", name, str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        assert peer.stderr is not None
        try:
            if peer.stdout.readline() != "ready\n":
                raise DaemonError(f"{name} does not misbehave: {peer.stderr.read()}")
            yield
            if peer.poll() is not None:
                raise DaemonError(f"{name} has ended: {peer.stderr.read()}")
        finally:
            peer.kill()


def _measure(daemon: Daemon, name: str, options: argparse.Namespace) -> Result:
    """Load the second export while the first one's front-end misbehaves."""
    with (
        FrontEnd(daemon.sockets[1], Geometry(depth=32)) as front,
        beside(name, daemon.sockets[0]),
    ):
        run(front, Workload(seconds=0.05))
        workload = Workload(seconds=options.seconds, rate=options.rate, wait_for_calls=True)
        result = run(front, workload)
    daemon.require_alive()
    return result


def _lane_rows(options: argparse.Namespace, lane: str) -> list[list[str]]:
    names = [name for name in PEERS if name in (options.peer or PEERS)]
    results: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        disk = Disk("null-co", (f"size={1 << 30}",))
        with running(vhostblk_backend(lane), disk, Path(directory), exports=2) as daemon:
            for _ in range(options.rounds):
                for name in names:
                    results[name].append(_measure(daemon, name, options))
    rows = []
    for name, found in results.items():
        rate = statistics.median(result.iops for result in found)
        late = [
            statistics.median(result.latency.percentile(part) for result in found) / 1e3
            for part in (50, 99)
        ]
        share = f"{rate / options.rate:.1%}"
        rows.append([lane, name, thousands(rate), share, *(f"{each:.0f}" for each in late)])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; return the exit status."""
    options = make_parser().parse_args(arguments)
    rows = [["lane", "beside", "k/s", "of what was asked", "p50 us", "p99 us"]]
    try:
        for lane in options.lane or ("express", "python"):
            rows += _lane_rows(options, lane)
    except (DaemonError, ProtocolError, RunError, OSError) as error:
        print(f"benchmarks.hostile: {error}", file=sys.stderr)
        return 1
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
