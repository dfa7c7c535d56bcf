# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.startup`: how long it takes until clients may connect.

A raw image and a qcow2 image with all its metadata, 1 TiB each, are served in turn, by vhostblk and
by the QEMU storage daemon. With `--tree` the vhostblk of another source tree takes turns with them:
whether starting has become slower shows there. The table also has the processor time until then,
which other programs hardly change, and the number of modules that Python has imported by then, with
how many of these are vhostblk's.

The exit status is 1 where vhostblk takes the target, or longer, with qcow2 by raw.
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
    parser.add_argument(
        "--tree", action="append", type=Path, default=[], help="another source tree, built"
    )
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


def vhostblk_backends(trees: Sequence[Path]) -> list[Backend]:
    """Return vhostblk of this source tree, and of others."""
    ours = vhostblk_backend()
    # Modules that are compiled at every start say nothing about an installed program.
    ours = replace(ours, environment=(*ours.environment, ("PYTHONDONTWRITEBYTECODE", "")))
    backends = [ours]
    for number, tree in enumerate(trees, 1):
        if not (tree / "vhostblk" / "__main__.py").exists():
            raise DaemonError(f"--tree {tree}: not a source tree of vhostblk")
        environment = {**dict(ours.environment), "PYTHONPATH": str(tree.resolve())}
        name = f"{tree.resolve().name}:{number}"
        backends.append(replace(ours, name=name, environment=tuple(environment.items())))
    return backends


def imported_modules(backend: Backend, disk: Disk, directory: Path) -> tuple[int, int]:
    """Count the modules that Python imports before clients may connect: all, and vhostblk's."""
    python, *rest = backend.command
    spying = replace(backend, command=(python, "-X", "importtime", *rest))
    with running(spying, disk, directory) as daemon:
        lines = daemon.log.read_text().splitlines()
    names = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    return len(names) - 1, sum(name.partition(".")[0] == "vhostblk" for name in names)


def measure(
    backends: Sequence[Backend], disks: dict[str, Disk], directory: Path, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by back-end and disk; everything starts once before it counts.

    Those of processor time are under the disk's name with `CPU` in front.
    """
    times: dict[str, dict[str, list[float]]] = {
        backend.name: {column: [] for name in disks for column in (name, f"CPU {name}")}
        for backend in backends
    }
    for number in range(-1, rounds):
        for backend in backends if number % 2 == 0 else reversed(backends):
            for name, disk in disks.items():
                with running(backend, disk, directory) as daemon:
                    cpu = daemon.cpu_seconds()
                    if number >= 0:
                        times[backend.name][name].append(daemon.start_seconds * 1e3)
                        times[backend.name][f"CPU {name}"].append(cpu * 1e3)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    options = make_parser().parse_args(arguments)
    try:
        ours = vhostblk_backends(options.tree)
        peers = [] if options.no_qemu else [qemu_backend(where=options.qemu)]
        with tempfile.TemporaryDirectory(prefix="vhostblk-", dir="/var/tmp") as work:
            disks = make_disks(Path(work))
            times = measure([*ours, *peers], disks, Path(work), options.rounds)
            modules = {
                each.name: imported_modules(each, disks["qcow2"], Path(work)) for each in ours
            }
    except (DaemonError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.startup: {error}", file=sys.stderr)
        return 1
    medians = {
        name: {disk: statistics.median(each) for disk, each in found.items()}
        for name, found in times.items()
    }
    columns = ["raw", "qcow2", "CPU raw", "CPU qcow2"]
    heading = ["ms until clients may connect", *columns, "qcow2 by raw", "modules", "of vhostblk"]
    table = [heading]
    for name, found in medians.items():
        share = f"{found['qcow2'] / found['raw']:.2f}"
        counts = [str(count) for count in modules.get(name, ("-", "-"))]
        table.append([name, *(f"{found[column]:.0f}" for column in columns), share, *counts])
    print(format_table(table))
    return int(medians[ours[0].name]["qcow2"] / medians[ours[0].name]["raw"] >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
