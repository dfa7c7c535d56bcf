# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.throttle`: how well throttle groups keep to their limits, and their cost.

Exports of `throttle` nodes over `null-co` are driven as fast as the limit lets them, vhostblk's two
lanes and the QEMU storage daemon in turn. The table has each export's rate as a percentage of the
group's limit (a fair group gives each the same) and of all together: 101 % over ten seconds is
right, as a tenth of a second's worth goes at once. A second table has the speed of an export whose
limits are out of reach against one that is not throttled at all, in turns. The chart shows rates.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Case
from benchmarks.compare import FAILURES, peer
from benchmarks.daemons import ROOT, Backend, Disk, qemu_backend, running, version, vhostblk_backend
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.run import Result, Workload, run
from benchmarks.measure import Point, Row
from benchmarks.plot import as_svg
from benchmarks.report import Report, format_table, thousands

if TYPE_CHECKING:
    from collections.abc import Sequence

NULL = ("file.driver=null-co", f"file.size={1 << 30}", "throttle-group=g")
#: Out of reach.
HUGE = "x-iops-total=100000000,x-bps-total=1000000000000"
DEPTHS = (1, 32, 128)


@dataclass(frozen=True)
class Scenario:
    """A group with a limit, in requests or in bytes a second, and exports of certain depths."""

    limit: str
    value: int
    depths: tuple[int, ...]
    block_size: int = 4096
    write_share: float = 0.0

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.limit}={self.value:,}"

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.value / (self.block_size if self.limit.startswith("bps") else 1)


SCENARIOS = (
    Scenario("iops-total", 500, (16,)),
    Scenario("iops-total", 20_000, (32,)),
    Scenario("iops-total", 5000, (16,), write_share=0.5),
    Scenario("bps-total", 100_000_000, (16,), block_size=65536),
    Scenario("iops-total", 5000, (16, 16)),
    Scenario("iops-total", 2000, (64, 1)),
    Scenario("iops-total", 5000, (16, 16, 16, 16)),
)


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throttle", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=10.0, help="length of a run at a limit")
    add("--rounds", type=int, default=5, help="runs out of the limits' reach")
    add("--round-seconds", type=float, default=0.5, help="length of each of those")
    add("--qemu", type=Path, help="the QEMU daemon, a program or the root of a Debian system")
    add("--no-qemu", action="store_true", help="only vhostblk")
    add("--output", type=Path, default=ROOT / ".cache" / "benchmarks", help="for the SVG")
    return parser


def drive(scenario: Scenario, backend: Backend, directory: Path, seconds: float) -> list[Result]:
    """Load all exports of a daemon's group at once; return the results by export."""
    objects = (f"throttle-group,id=g,x-{scenario.limit}={scenario.value}",)
    disk = Disk("throttle", NULL, objects=objects)
    exports = len(scenario.depths)
    with (
        running(backend, disk, directory, exports) as daemon,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(exports) as pool,
    ):
        fronts = [
            stack.enter_context(
                FrontEnd(path, Geometry(depth=depth, block_size=scenario.block_size))
            )
            for path, depth in zip(daemon.sockets, scenario.depths, strict=True)
        ]
        workload = Workload(
            seconds=seconds, write_share=scenario.write_share, wait_for_calls=True, stall_seconds=30
        )
        return list(pool.map(lambda front: run(front, workload), fronts))


def _row(scenario: Scenario, number: int, results: dict[str, list[Result]]) -> Row:
    """Make a row of the chart: one export of a group, or all of them (-1)."""
    what = "all" if number < 0 else str(number + 1)
    depth = sum(scenario.depths) if number < 0 else scenario.depths[number]
    points = {}
    for name, each in results.items():
        rates = [result.iops for result in each]
        rate = sum(rates) if number < 0 else rates[number]
        points[name] = Point([rate], [0.0], [0.0], [0.0])
    return Row(Case(f"{scenario.name}, {what}", "null"), depth, points)


def measure_accuracy(
    backends: Sequence[Backend], directory: Path, seconds: float
) -> tuple[Report, str]:
    """Measure all scenarios; return what the chart shows, and the table."""
    names = [backend.name for backend in backends]
    report = Report(names, versions={backend.name: version(backend) for backend in backends})
    table = [["limit", "export", "depth", *(f"{name} %" for name in names)]]
    for scenario in SCENARIOS:
        results = {
            backend.name: drive(scenario, backend, directory, seconds) for backend in backends
        }
        single = range(len(scenario.depths)) if len(scenario.depths) > 1 else ()
        for number in (*single, -1):
            row = _row(scenario, number, results)
            report.throughput.append(row)
            shares = (row.points[name].median("iops") / scenario.rate for name in names)
            which = "all" if number < 0 else str(number + 1)
            cells = (f"{100 * share:.1f}" for share in shares)
            table.append([scenario.name, which, str(row.depth), *cells])
    return report, format_table(table)


def measure_cost(backend: Backend, directory: Path, rounds: int, seconds: float) -> str:
    """Compare an export with limits out of reach with a plain one; return the table."""
    plain_disk = Disk("null-co", (f"size={1 << 30}",))
    throttled_disk = Disk("throttle", NULL, objects=(f"throttle-group,id=g,{HUGE}",))
    table = [["depth", "plain k/s", "throttled k/s", "ratio"]]
    for name in ("plain", "throttled"):
        (directory / name).mkdir()
    with (
        running(backend, plain_disk, directory / "plain") as plain,
        running(backend, throttled_disk, directory / "throttled") as throttled,
    ):
        for depth in DEPTHS:
            rates: list[list[float]] = [[], []]
            for number in range(2 * rounds):
                daemon = (plain, throttled)[number % 2]
                with FrontEnd(daemon.sockets[0], Geometry(depth=depth)) as front:
                    run(front, Workload(seconds=0.1))
                    rates[number % 2].append(run(front, Workload(seconds=seconds)).iops)
            medians = [statistics.median(samples) for samples in rates]
            cells = [thousands(median) for median in medians]
            table.append([str(depth), *cells, f"{medians[1] / medians[0]:.2f}"])
    return format_table(table)


def _run(options: argparse.Namespace) -> None:
    backends = [vhostblk_backend("express"), vhostblk_backend("python")]
    if not options.no_qemu:
        backends.append(qemu_backend(where=peer(options.qemu)))
    with tempfile.TemporaryDirectory(prefix="vhostblk-bench-") as made:
        directory = Path(made)
        report, table = measure_accuracy(backends, directory, options.seconds)
        print(table, end="\n\n", flush=True)
        print(measure_cost(backends[0], directory, options.rounds, options.round_seconds))
    options.output.mkdir(parents=True, exist_ok=True)
    chart = options.output / "throttle.svg"
    chart.write_text(as_svg(report))
    print(f"written: {chart}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables; return the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        _run(options)
    except (*FAILURES, OSError, ValueError) as error:
        print(f"benchmarks.throttle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
