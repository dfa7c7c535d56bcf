# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.startup`: how long it takes until clients may connect.

A raw image and a qcow2 image with all its metadata, 1 TiB each, are served in turn, by vhostblk and
by the QEMU storage daemon. The exit status is 1 where vhostblk takes the target, or longer, with
qcow2 by raw.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.daemons import Backend, DaemonError, Disk, qemu_backend, running, vhostblk_backend
from benchmarks.report import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Time with qcow2 by time with raw.
TARGET = 1.5
SIZE = 1 << 40


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="starts of each daemon and image")
    parser.add_argument("--no-qemu", action="store_true", help="only vhostblk")
    parser.add_argument("--qemu", type=Path, help="the QEMU daemon: a program or a Debian root")
    return parser


def make_disks(directory: Path) -> dict[str, Disk]:
    """Make the images; they take 160 MiB."""
    raw, qcow2 = directory / "disk.raw", directory / "disk.qcow2"
    with raw.open("xb") as file:
        file.truncate(SIZE)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]
    subprocess.run([*command, qcow2, str(SIZE)], check=True)
    return {
        driver: Disk(driver, ("file.driver=file", f"file.filename={path}"))
        for driver, path in (("raw", raw), ("qcow2", qcow2))
    }


def measure(
    backends: Sequence[Backend], disks: dict[str, Disk], directory: Path, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by back-end and disk; everything starts once before it counts."""
    times: dict[str, dict[str, list[float]]] = {
        backend.name: {name: [] for name in disks} for backend in backends
    }
    for number in range(-1, rounds):
        for backend in backends:
            for name, disk in disks.items():
                with running(backend, disk, directory) as daemon:
                    if number >= 0:
                        times[backend.name][name].append(daemon.start_seconds * 1e3)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    options = make_parser().parse_args(arguments)
    ours = vhostblk_backend()
    # Modules that are compiled at every start say nothing about an installed program.
    ours = replace(ours, environment=(*ours.environment, ("PYTHONDONTWRITEBYTECODE", "")))
    try:
        backends = [ours] if options.no_qemu else [ours, qemu_backend(where=options.qemu)]
        with tempfile.TemporaryDirectory(prefix="vhostblk-", dir="/var/tmp") as work:
            times = measure(backends, make_disks(Path(work)), Path(work), options.rounds)
    except (DaemonError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.startup: {error}", file=sys.stderr)
        return 1
    medians = {
        name: {disk: statistics.median(each) for disk, each in found.items()}
        for name, found in times.items()
    }
    table = [["ms until clients may connect", "raw", "qcow2", "qcow2 by raw"]]
    for name, found in medians.items():
        share = f"{found['qcow2'] / found['raw']:.2f}"
        table.append([name, f"{found['raw']:.0f}", f"{found['qcow2']:.0f}", share])
    print(format_table(table))
    return int(medians[ours.name]["qcow2"] / medians[ours.name]["raw"] >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
