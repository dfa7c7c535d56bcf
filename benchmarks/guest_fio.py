# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.guest_fio`: fio inside a guest, on vhostblk and on the QEMU storage daemon.

One guest has a disk of each daemon, and fio works on them in turn. The guest is that of the
integration tests, with this machine's fio added. It is emulated, which makes the guest the
bottleneck, and the comparison a mild one, unless `--kvm` is given (nested KVM may not do).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import CASES, Case, disk_for
from benchmarks.compare import parse_backend, peer
from benchmarks.daemons import ROOT, Daemon, DaemonError, running
from benchmarks.report import format_table, thousands
from integration.guest.cpio import CpioWriter
from integration.guest.errors import GuestError, HarnessError
from integration.guest.initramfs import find_program, shared_libraries
from integration.guest.machine import Machine, VhostUserDisk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CACHE = ROOT / ".cache" / "benchmarks"
NAMES = ("null-read", "null-write", "cache-read", "cache-write", "tmpfs-read", "tmpfs-write")
DEPTHS = (1, 32)
#: fio and its libraries are unpacked into it: the guest needs more than the tests' guests.
GUEST_MEMORY = 768


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guest_fio", description=__doc__)
    add = parser.add_argument
    add("--case", action="append", default=[], choices=NAMES, help="only these cases")
    add("--depth", action="append", type=int, help="only these queue depths")
    add("--seconds", type=int, default=2, help="length of a run")
    add("--rounds", type=int, default=5, help="runs of each daemon at each point")
    add("--size", type=int, default=256, help="MiB of each image")
    add("--cpus", type=int, default=1, help="processors of the guest")
    add("--qemu", type=Path, metavar="PATH", help="as for python -m benchmarks")
    add("--kvm", action="store_true", help="a guest under KVM; default: emulated")
    add("--output", type=Path, default=CACHE / "guest_fio.json", help="for JSON")
    return parser


class FioMachine(Machine):
    """The tests' guest with fio in it, and with KVM if `kvm` is set."""

    kvm = False

    def command(self, agent_fd: int, monitor_fd: int) -> list[str]:
        """Give QEMU's command line."""
        command = super().command(agent_fd, monitor_fd)
        position = command.index("-initrd") + 1
        command[position] = str(_with_fio(Path(command[position])))
        if self.kvm:
            command[command.index("-accel") + 1] = "kvm"
            # Nested, KVM refuses what it offers of this one.
            command[command.index("-cpu") + 1] = "host,arch-capabilities=off"
        return command


def _with_fio(initramfs: Path) -> Path:
    """Return an archive that has fio as well: the kernel unpacks one after the other."""
    fio = find_program("fio")
    files = {"bin/fio": fio, **shared_libraries(fio)}
    digest = hashlib.sha256(initramfs.name.encode())
    for source in files.values():
        digest.update(f"{source} {source.stat().st_mtime_ns}\n".encode())
    path = CACHE / f"fio-{digest.hexdigest()[:12]}.cpio"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        with unfinished.open("wb") as stream:
            stream.write(initramfs.read_bytes())
            archive = CpioWriter(stream)
            for name, source in files.items():
                archive.file(name, source.read_bytes(), mode=0o755)
            archive.close()
        unfinished.replace(path)
    return path


@dataclass
class Samples:
    """What one daemon reached at one point, a sample each round."""

    iops: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def take(self, answer: str, *, write: bool, cpu_seconds: float) -> None:
        """Take fio's JSON, and the daemon's CPU time."""
        job = json.loads(answer[answer.index("{") :])["jobs"][0]["write" if write else "read"]
        percentiles = job["clat_ns"]["percentile"]
        self.iops.append(job["iops"])
        self.p50_us.append(percentiles["50.000000"] / 1e3)
        self.p99_us.append(percentiles["99.000000"] / 1e3)
        self.cpu_us.append(cpu_seconds / max(job["total_ios"], 1) * 1e6)

    def medians(self) -> list[str]:
        """Cells of the table."""
        cells = [thousands(statistics.median(self.iops))]
        lists = (self.p50_us, self.p99_us, self.cpu_us)
        return cells + [f"{statistics.median(samples):.1f}" for samples in lists]


@dataclass(frozen=True)
class Row:
    """A case at a depth."""

    case: str
    depth: int
    samples: dict[str, Samples]

    @property
    def ratio(self) -> float:
        """Median throughput of the first daemon by the second's."""
        first, second = (statistics.median(each.iops) for each in self.samples.values())
        return first / max(second, 1e-9)


def _script(device: str, case: Case, depth: int, seconds: int) -> str:
    return (
        f"fio --name=job --filename={device} --direct=1 --ioengine=io_uring --thread"
        f" --rw={'randwrite' if case.write else 'randread'} --bs={case.block_size}"
        f" --iodepth={depth} --time_based --runtime={seconds} --ramp_time=200ms --norandommap"
        " --allow_file_create=0 --output-format=json 2>/dev/null"
    )


def measure(options: argparse.Namespace, case: Case, directories: dict[str, Path]) -> list[Row]:
    """Measure a case at all depths in one guest."""
    qemu = "qemu" if case.place == "null" else f"qemu:{case.aio}"
    backends = [
        parse_backend(name, iothread=True, qemu=peer(options.qemu)) for name in ("vhostblk", qemu)
    ]
    with contextlib.ExitStack() as stack:
        daemons: list[Daemon] = []
        for backend in backends:
            disk = disk_for(case, backend, directories, options.size << 20)
            daemons.append(stack.enter_context(running(backend, disk, directories["run"])))
        disks = [
            VhostUserDisk(daemon.sockets[0], f"disk{number}")
            for number, daemon in enumerate(daemons)
        ]
        machine = FioMachine(directories["run"], *disks, cpus=options.cpus, memory=GUEST_MEMORY)
        machine.kvm = options.kvm
        guest = stack.enter_context(machine)
        return [
            _measure_depth(options, case, depth, guest, daemons)
            for depth in options.depth or DEPTHS
        ]


def _measure_depth(
    options: argparse.Namespace, case: Case, depth: int, guest: Machine, daemons: Sequence[Daemon]
) -> Row:
    samples = {name: Samples() for name in ("vhostblk", "qemu")}
    for _ in range(options.rounds):
        for device, daemon, taken in zip(
            ("/dev/vda", "/dev/vdb"), daemons, samples.values(), strict=True
        ):
            before = daemon.cpu_seconds()
            script = _script(device, case, depth, options.seconds)
            answer = guest.run(script, "fio", timeout=60.0 + options.seconds)
            used = daemon.cpu_seconds() - before
            taken.take(answer, write=case.write, cpu_seconds=used)
    return Row(case.name, depth, samples)


@contextlib.contextmanager
def _directories() -> Iterator[dict[str, Path]]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        places = {"file": CACHE, "memory": Path("/dev/shm"), "run": None}
        yield {
            name: Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="vhostblk-", dir=parent))
            )
            for name, parent in places.items()
        }


def _table(rows: list[Row]) -> str:
    table = [["case", "depth"]]
    for name in ("vhostblk", "qemu"):
        table[0] += [f"{name} k/s", "p50 us", "p99 us", "CPU us"]
    table[0].append("ratio")
    for row in rows:
        cells = [cell for samples in row.samples.values() for cell in samples.medians()]
        table.append([row.case, str(row.depth), *cells, f"{row.ratio:.2f}"])
    return format_table(table)


def _as_json(rows: list[Row], *, kvm: bool) -> str:
    return json.dumps(
        {
            "accelerator": "kvm" if kvm else "tcg",
            "load_average": os.getloadavg(),
            "rows": [
                {
                    "case": row.case,
                    "depth": row.depth,
                    "ratio": row.ratio,
                    "samples": {name: vars(samples) for name, samples in row.samples.items()},
                }
                for row in rows
            ],
        },
        indent=1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; return the exit status."""
    options = make_parser().parse_args(arguments)
    cases = [case for case in CASES if case.name in (options.case or NAMES)]
    rows: list[Row] = []
    try:
        for case in cases:
            with _directories() as directories:
                rows += measure(options, case, directories)
    except (DaemonError, GuestError, HarnessError, OSError, ValueError) as error:
        print(f"benchmarks.guest_fio: {error}", file=sys.stderr)
        return 1
    print(f"fio in a guest under {'KVM' if options.kvm else 'TCG'}, {options.cpus} processor(s)\n")
    print(_table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(_as_json(rows, kvm=options.kvm))
    print(f"\nwritten: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
