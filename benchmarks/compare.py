# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: run vhostblk and the QEMU storage daemon side by side.

The result is a table on standard output, and JSON and a chart in files. Nothing fails for being
slow: the exit status only says whether the measurements could be made.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import case_names, chosen_cases
from benchmarks.daemons import (
    ROOT,
    Backend,
    DaemonError,
    qemu_backend,
    version,
    vhostblk_backend,
)
from benchmarks.libblkio.client import compile_bench
from benchmarks.loadgen.build import BuildError
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import RunError
from benchmarks.measure import Settings, measure_case, measure_footprint
from benchmarks.plot import as_svg
from benchmarks.report import Report, as_json, as_text
from peers.debian import TRIXIE, RootError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FAILURES = (DaemonError, RootError, RunError, ProtocolError, BuildError)
CLIENTS = ("loadgen", "libblkio")
#: Cases that daemons are also run on at a fixed rate.
PACED = ("null-read", "cache-read", "tmpfs-read")
PACED_DEPTH = 32


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--case", action="append", default=[], choices=case_names(), help="only these cases")
    add("--depth", action="append", type=int, help="only these queue depths")
    add(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="vhostblk[:LANE], vhostblk:raw (a raw image whatever the case has) or qemu[:AIO]; the"
        " first is compared with the best of the others"
        " (default: vhostblk, qemu:io_uring, qemu:threads; --quick: vhostblk and qemu, which takes"
        " the aio that is best as a rule)",
    )
    add(
        "--client",
        choices=CLIENTS,
        help="the front-end: the load generator of this project, or libblkio (makes a Debian 13"
        " root with debootstrap on first use), which does the throughput cases only; default: both"
        " where that root can be had (--quick: where it is)",
    )
    add(
        "--qemu",
        type=Path,
        metavar="PATH",
        help="the qemu-storage-daemon to compare with, or the root directory of a Debian system"
        " that has it (default: that of the Debian 13 root, once there is one, else the installed)",
    )
    add("--no-iothread", action="store_true", help="exports on the main thread")
    add("--queues", type=int, default=1, help="queues of the front-end")
    add("--threads", type=int, default=1, help="threads of the front-end")
    add("--seconds", type=float, help="length of a run")
    add("--rounds", type=int, help="runs of each daemon at each point")
    add("--size", type=int, help="MiB of each image")
    add("--aio", choices=["threads", "native", "io_uring"], help="aio of qemu in all cases")
    add("--file-dir", type=Path, default=ROOT / ".cache" / "benchmarks", help="on a disk")
    add("--memory-dir", type=Path, default=Path("/dev/shm"), help="on tmpfs")
    add("--rate", action="append", type=int, help="requests a second of the fixed-rate runs")
    add("--no-throughput", action="store_true", help="leave the throughput cases out")
    add("--no-resources", action="store_true", help="leave CPU time, memory and idle out")
    add(
        "--bare",
        action="store_true",
        help="measure a bare loop of system calls on one thread in each round, too: the limit",
    )
    add("--quick", action="store_true", help="a minute: short runs, small images")
    add("--output", type=Path, default=ROOT / ".cache" / "benchmarks", help="for JSON and SVG")
    return parser


def parse_backend(text: str, *, iothread: bool, qemu: Path | None = None) -> Backend:
    """Make a back-end of its name; raises DaemonError for a name that means nothing."""
    kind, _, detail = text.partition(":")
    if text == "vhostblk:raw":
        return replace(vhostblk_backend(iothread=iothread), name=text, raw=True)
    if kind == "vhostblk":
        return vhostblk_backend(detail or None, iothread=iothread)
    if kind == "qemu" and detail in ("", "threads", "native", "io_uring"):
        return qemu_backend(detail or None, iothread=iothread, where=qemu)
    raise DaemonError(
        f"--backend {text}: not vhostblk[:LANE|:raw] or qemu[:threads|native|io_uring]"
    )


def peer(chosen: Path | None) -> Path | None:
    """Say which QEMU daemon is the peer: the chosen one, the Debian root's, or (None) another."""
    if chosen is not None or "QEMU_STORAGE_DAEMON" in os.environ:
        return chosen
    return TRIXIE.path if TRIXIE.is_complete() else None


def _clients(options: argparse.Namespace) -> list[str]:
    """Choose the front-ends, and prepare libblkio; raises what keeps it from being used."""
    if options.client == "loadgen":
        return ["loadgen"]
    if options.client == "libblkio":
        if options.queues != 1 or options.threads != 1:
            raise ValueError("--client libblkio: has one queue and one thread")
        compile_bench()
        return ["libblkio"]
    if options.queues != 1 or options.no_throughput or (options.quick and not TRIXIE.is_complete()):
        return ["loadgen"]
    try:
        compile_bench()
    except (RootError, BuildError) as error:
        print(f"without libblkio: {error}", file=sys.stderr)
        return ["loadgen"]
    return ["loadgen", "libblkio"]


def _settings(options: argparse.Namespace, directories: dict[str, Path], client: str) -> Settings:
    peers = ["qemu"] if options.quick or options.aio else ["qemu:io_uring", "qemu:threads"]
    names = options.backend or ["vhostblk", *peers]
    iothread = not options.no_iothread
    qemu = peer(options.qemu)
    seconds, rounds, size = (0.3, 3, 128) if options.quick else (1.0, 5, 512)
    return Settings(
        backends=tuple(parse_backend(name, iothread=iothread, qemu=qemu) for name in names),
        directories=directories,
        seconds=options.seconds or seconds,
        rounds=options.rounds or rounds,
        size=(options.size or size) << 20,
        threads=options.threads,
        rates=tuple(options.rate or (5000, 50000)),
        client=client,
        aio=options.aio,
        bare=options.bare,
    )


@contextlib.contextmanager
def _directories(options: argparse.Namespace) -> Iterator[dict[str, Path]]:
    options.file_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:

        def temporary(parent: Path | None) -> Path:
            made = tempfile.TemporaryDirectory(prefix="vhostblk-bench-", dir=parent)
            return Path(stack.enter_context(made))

        yield {
            "file": temporary(options.file_dir),
            "memory": temporary(options.memory_dir),
            "run": temporary(None),
        }


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def compare(options: argparse.Namespace, settings: Settings) -> Report:
    """Make all measurements."""
    report = Report(
        [backend.name for backend in settings.backends],
        client=settings.client,
        versions={backend.name: version(backend) for backend in settings.backends},
    )
    cases = chosen_cases(options.case, options.depth, options.queues)
    if settings.client == "libblkio":
        cases = [case for case in cases if not case.think_us and not case.allocates]
    if not options.no_throughput:
        for case in cases:
            report.throughput += measure_case(case, settings, _progress)
    if not options.no_resources and settings.client == "loadgen":
        for case in cases:
            if case.name in PACED:
                paced = replace(case, depths=(PACED_DEPTH,))
                report.paced += measure_case(paced, settings, _progress, settings.rates)
        report.footprints = [
            measure_footprint(backend, settings, _progress) for backend in settings.backends
        ]
    return report


def write_files(report: Report, directory: Path) -> list[Path]:
    """Write JSON and chart; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = "results" if report.client == "loadgen" else f"results-{report.client}"
    files = [(directory / f"{stem}.json", as_json(report))]
    if report.throughput:
        files.append((directory / f"{stem}.svg", as_svg(report)))
    for path, text in files:
        path.write_text(text)
    return [path for path, _ in files]


def _run(options: argparse.Namespace) -> None:
    for client in _clients(options):
        with _directories(options) as directories:
            report = compare(options, _settings(options, directories, client))
        _progress("")
        print(as_text(report))
        for path in write_files(report, options.output):
            print(f"written: {path}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the tables; return the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        _run(options)
    except (*FAILURES, OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0
