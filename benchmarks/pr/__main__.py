# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.pr`: print a table of `vhostblk-pr-helper` and `qemu-pr-helper`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.daemons import cpu_seconds
from peers import debian

_HERE = Path(__file__).parent
_PATIENCE = 30.0
OURS, THEIRS = "vhostblk-pr-helper", "qemu-pr-helper"


class Case(NamedTuple):
    """What is measured: `microseconds` is the time that the device takes."""

    connections: int
    microseconds: int
    writes: bool

    @property
    def title(self) -> str:
        """Describe it in a line of the table."""
        kind = "OUT" if self.writes else "IN"
        return f"{kind}, {self.connections} connections, device {self.microseconds} us"


CASES = tuple(
    Case(connections, microseconds, writes)
    for connections in (1, 64)
    for microseconds in (0, 200)
    for writes in (False, True)
)


class Result(NamedTuple):
    """Commands a second, times of a command and of the helper's processors, in microseconds."""

    rate: float
    p50: float
    p99: float
    cpu: float


@dataclass(frozen=True)
class Tools:
    """What has been compiled, and a file that stands for the device."""

    directory: Path

    def build(self) -> None:
        """Compile the device and the client."""
        flags = ("-O2", "-Wall", "-Wextra", "-Werror")
        for words in (
            ("-shared", "-fPIC", "-o", self.device, _HERE / "device.c", "-ldl"),
            ("-pthread", "-o", self.client, _HERE / "client.c"),
        ):
            subprocess.run(["cc", *flags, *map(str, words)], check=True)
        self.file.touch()

    @property
    def device(self) -> Path:
        """The library that answers SG_IO."""
        return self.directory / "device.so"

    @property
    def client(self) -> Path:
        """The program that asks."""
        return self.directory / "client"

    @property
    def file(self) -> Path:
        """What is opened instead of a disk."""
        return self.directory / "disk"


class Helper:
    """A helper with the device loaded into it."""

    def __init__(self, name: str, tools: Tools, microseconds: int) -> None:
        self.path = tools.directory / f"{name}-{microseconds}.sock"
        environ = {**os.environ, "BENCH_MICROSECONDS": str(microseconds)}
        if name == OURS:
            command = [sys.executable, "-m", "vhostblk.pr.helper"]
            environ["LD_PRELOAD"] = str(tools.device)
        else:
            loader, *rest = debian.program(THEIRS)
            command = [loader, "--preload", str(tools.device), *rest]
        command += ["-k", str(self.path)]
        self.process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while not self.path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def measure(self, case: Case, tools: Tools, seconds: float) -> Result:
        """Have one case measured."""
        before = cpu_seconds(self.process.pid)
        words = (self.path, tools.file, case.connections, int(seconds * 1000), int(case.writes))
        done = subprocess.run(
            [str(tools.client), *map(str, words)], check=True, capture_output=True, text=True
        )
        rate, p50, p99 = map(float, done.stdout.split())
        used = cpu_seconds(self.process.pid) - before
        return Result(rate, p50, p99, used * 1e6 / max(rate * seconds, 1))

    def end(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def measure(tools: Tools, cases: tuple[Case, ...], rounds: int, seconds: float) -> None:
    """Measure all and print the table, a line each case."""
    print(f"{'':36} {'commands/s':>17} {'p50 us':>13} {'p99 us':>15} {'CPU us':>13}  rate, p50")
    for microseconds in sorted({case.microseconds for case in cases}):
        helpers = [Helper(name, tools, microseconds) for name in (OURS, THEIRS)]
        try:
            for case in cases:
                if case.microseconds == microseconds:
                    _print(case, *_compare(helpers, case, tools, rounds, seconds))
        finally:
            for helper in helpers:
                helper.end()


def _compare(
    helpers: list[Helper], case: Case, tools: Tools, rounds: int, seconds: float
) -> list[Result]:
    found: list[list[Result]] = [[] for _ in helpers]
    for number in range(rounds):
        pairs = list(zip(helpers, found, strict=True))
        for helper, results in reversed(pairs) if number % 2 else pairs:
            results.append(helper.measure(case, tools, seconds))
    return [Result(*map(median, zip(*results, strict=True))) for results in found]


def _print(case: Case, ours: Result, theirs: Result) -> None:
    print(
        f"{case.title:36} {ours.rate:8.0f} {theirs.rate:8.0f} {ours.p50:6.1f} {theirs.p50:6.1f} "
        f"{ours.p99:7.1f} {theirs.p99:7.1f} {ours.cpu:6.1f} {theirs.cpu:6.1f}  "
        f"{ours.rate / theirs.rate:.2f} {ours.p50 / theirs.p50:.2f}",
        flush=True,
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pr", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round")
    parser.add_argument("--instantaneous", action="store_true", help="only that device")
    options = parser.parse_args()
    cases = tuple(case for case in CASES if not (options.instantaneous and case.microseconds))
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        tools = Tools(Path(name))
        tools.build()
        measure(tools, cases, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
