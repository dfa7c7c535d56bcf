# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.plugin`: the same disk in Python behind vhostblk and behind nbdkit.

The disk is a pattern in memory: what is measured is the way from a client to a few lines of Python
and back. It is vhost-user-blk and this project's load generator on one side, NBD over a Unix socket
and `benchmarks.nbd` on the other (`apt install nbdkit nbdkit-plugin-python`). nbdkit runs as it is
best for a Python plug-in, which depends on the depth: one request at a time, with its default of
16 threads or with one, or as many as Python lets it; the best of these counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import nbd
from benchmarks.daemons import ROOT, DaemonError, Disk, running, stop, vhostblk_backend
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.run import Workload, run
from benchmarks.report import format_table, thousands

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP_SECONDS = 0.1
#: nbdkit's thread models and its number of threads.
THREADS = (("SERIALIZE_ALL_REQUESTS", 1), ("SERIALIZE_ALL_REQUESTS", 16), ("PARALLEL", 16))
TARGET = {32: 3.0}

#: Given a depth, seconds, and whether to write: requests a second.
Measure = Callable[[int, float, bool], float]


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plugin", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=1.0, help="length of a run")
    add("--rounds", type=int, default=5, help="runs of each at each depth, in turn")
    add("--depth", type=int, action="append", help="requests in flight (1, 32 and 128)")
    return parser


def _install(directory: Path) -> None:
    """Offer the drivers as a package does."""
    info = directory / "vhostblk_benchmark-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vhostblk-benchmark\nVersion: 1\n")
    module = "benchmarks.plugin_driver"
    (info / "entry_points.txt").write_text(
        f"[vhostblk.drivers]\nbench = {module}:Bench\nbench-sync = {module}:BenchSync\n"
    )


@contextlib.contextmanager
def _vhostblk(driver: str, directory: Path) -> Iterator[Measure]:
    path = os.pathsep.join([str(ROOT), str(directory)])
    backend = replace(vhostblk_backend(), name=driver, environment=(("PYTHONPATH", path),))
    with running(backend, Disk(driver), directory) as daemon:

        def measure(depth: int, seconds: float, write: bool) -> float:
            share = 1.0 if write else 0.0
            with FrontEnd(daemon.sockets[0], Geometry(depth=depth)) as front_end:
                run(front_end, Workload(seconds=WARM_UP_SECONDS, write_share=share))
                return run(front_end, Workload(seconds=seconds, write_share=share)).iops

        yield measure


@contextlib.contextmanager
def _nbdkit(model: str, threads: int, directory: Path) -> Iterator[Measure]:
    path = directory / f"{model}-{threads}.sock"
    script = str(ROOT / "benchmarks" / "plugin_nbdkit.py")
    process = subprocess.Popen(
        ["nbdkit", "--foreground", f"--threads={threads}", "--unix", str(path), "python", script],
        env={**os.environ, "THREAD_MODEL": model},
    )
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DaemonError("nbdkit does not start")
            time.sleep(0.01)

        def measure(depth: int, seconds: float, write: bool) -> float:
            nbd.run(path, depth=depth, seconds=WARM_UP_SECONDS, write=write)
            return nbd.run(path, depth=depth, seconds=seconds, write=write)

        yield measure
    finally:
        stop(process, 5.0)


def compare(options: argparse.Namespace, directory: Path) -> list[list[str]]:
    """Measure everything, in turn; return a table with its heading."""
    _install(directory)
    names = [
        "Driver",
        "SyncDriver",
        *(f"nbdkit {model.split('_')[0].lower()} {threads}" for model, threads in THREADS),
    ]
    table = [["", "depth", *(f"{name} k/s" for name in names), "ratio", "sync ratio", "target"]]
    with contextlib.ExitStack() as stack:
        measures = [
            stack.enter_context(_vhostblk(name, directory)) for name in ("bench", "bench-sync")
        ]
        measures += [stack.enter_context(_nbdkit(*choice, directory)) for choice in THREADS]
        for write in (False, True):
            for depth in options.depth or (1, 32, 128):
                samples: list[list[float]] = [[] for _ in measures]
                for _ in range(options.rounds):
                    for sample, measure in zip(samples, measures, strict=True):
                        sample.append(measure(depth, options.seconds, write))
                medians = [statistics.median(sample) for sample in samples]
                peer = max(medians[2:])
                row = ["write" if write else "read", str(depth), *map(thousands, medians)]
                row += [f"{medians[0] / peer:.2f}", f"{medians[1] / peer:.2f}"]
                table.append([*row, f"{TARGET[depth]:g}" if depth in TARGET else "-"])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table; return the exit status."""
    options = make_parser().parse_args(arguments)
    if shutil.which("nbdkit") is None:
        print("benchmarks.plugin: nbdkit is not installed", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="vhostblk-bench-") as directory:
            print(format_table(compare(options, Path(directory))))
    except (DaemonError, nbd.NbdError, OSError) as error:
        print(f"benchmarks.plugin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
