# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.hostile`: how fast one export is while another's front-end misbehaves.

Both are null disks of one daemon, on one iothread, which is the worst that can be. Depth is 32, and
the front-end that is measured sleeps for its interrupts. A peer that misbehaves also takes a
processor from everybody; what that alone costs is seen beside one that merely spins, and the last
column is against that. `honest` is a front-end that works as hard as it can, and has its share.
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

#: What the others are measured against.
REFERENCE = "spinning"


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    add = parser.add_argument
    add("--lane", action="append", choices=["express", "python"], help="only these lanes")
    add("--peer", action="append", choices=list(PEERS), help="only these peers")
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


def _measure(daemon: Daemon, name: str, seconds: float) -> Result:
    """Load the second export while the first one's front-end misbehaves."""
    with (
        FrontEnd(daemon.sockets[1], Geometry(depth=32)) as front,
        beside(name, daemon.sockets[0]),
    ):
        run(front, Workload(seconds=0.05))
        result = run(front, Workload(seconds=seconds, wait_for_calls=True))
    daemon.require_alive()
    return result


def _lane_rows(options: argparse.Namespace, lane: str) -> list[list[str]]:
    names = [name for name in PEERS if name in (options.peer or PEERS) or name == REFERENCE]
    results: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        disk = Disk("null-co", (f"size={1 << 30}",))
        with running(vhostblk_backend(lane), disk, Path(directory), exports=2) as daemon:
            for _ in range(options.rounds):
                for name in names:
                    results[name].append(_measure(daemon, name, options.seconds))
    rates = {name: statistics.median(r.iops for r in found) for name, found in results.items()}
    rows = []
    for name, found in results.items():
        slow = statistics.median(result.latency.percentile(99) for result in found) / 1e3
        share = f"{rates[name] / rates[REFERENCE]:.0%}"
        rows.append([lane, name, thousands(rates[name]), f"{slow:.0f}", share])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; return the exit status."""
    options = make_parser().parse_args(arguments)
    rows = [["lane", "beside", "k/s", "p99 us", f"of {REFERENCE}"]]
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
