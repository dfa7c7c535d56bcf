# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.qmp_latency`: how long QMP commands take while the exports are busy.

Four exports (two without storage behind them, two on files), each on an iothread of its own, are
driven as fast as they go by interrupt-driven front-ends; a client sends one command after the other
and waits for each answer. It counts from the first command on, which is sent while the front-ends
connect. vhostblk and the QEMU storage daemon take turns. The exit status is 1 where vhostblk's 99th
percentile is at the target or above it.

The front-ends, the client and the daemon share the machine: with fewer processors than busy threads
the times contain waiting for a processor. Below the table stands what the processors did.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.daemons import Backend, DaemonError, qemu_backend, stop, version, vhostblk_backend
from benchmarks.loadgen.build import BuildError
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.run import Workload, run
from benchmarks.report import format_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Milliseconds that the 99th percentile of every command has to stay below.
TARGET = 50.0
EXPORTS = 4
#: Seconds between two rounds of commands.
PAUSE = 0.002
#: Columns of the table: shares of the times that are not above the value.
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
NULL_NODE = {"driver": "null-co", "node-name": "temporary", "size": MIB}

#: What is measured: commands that are sent one after the other and timed together.
SUBJECTS: dict[str, tuple[tuple[str, dict[str, Any] | None], ...]] = {
    "query-block-exports": (("query-block-exports", None),),
    "query-named-block-nodes": (("query-named-block-nodes", None),),
    "query-blockstats": (("query-blockstats", {"query-nodes": True}),),
    "blockdev-add + blockdev-del": (
        ("blockdev-add", NULL_NODE),
        ("blockdev-del", {"node-name": "temporary"}),
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qmp_latency", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=5.0, help="length of each daemon's turn")
    add("--rounds", type=int, default=3, help="turns of each daemon")
    add("--depth", type=int, default=16, help="requests in flight on each export; 0: no load")
    add("--warm-up", type=float, default=0.0, help="seconds of each turn that don't count")
    add("--nice", type=int, default=0, help="niceness of the front-ends, 0 to 19")
    add("--qemu", type=Path, help="the QEMU daemon, a program or the root of a Debian system")
    add("--no-qemu", action="store_true", help="only vhostblk")
    return parser


class Client:
    """A QMP client that does nothing but wait for the answer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        self._read("QMP")
        self.execute("qmp_capabilities", None)

    def execute(self, command: str, arguments: dict[str, Any] | None) -> None:
        """Run a command; raises DaemonError where it fails."""
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._channel.sendall(json.dumps(message).encode() + b"\n")
        self._read("return")

    def _read(self, wanted: str) -> None:
        while True:
            line = self._lines.readline()
            if not line:
                raise DaemonError("the daemon closed its monitor")
            answer = json.loads(line)
            if wanted in answer:
                return
            if "event" not in answer:
                raise DaemonError(f"QMP: {answer}")


@dataclass
class Outcome:
    """What was measured of one daemon."""

    times: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    #: The slowest of each turn's first answers.
    first: dict[str, float] = field(default_factory=dict)
    #: What the processors did, in seconds: idle, this daemon, the front-ends, others.
    processors: Counter[str] = field(default_factory=Counter)

    def percentile(self, subject: str, share: float) -> float:
        """Milliseconds that `share` of the times are not above."""
        times = sorted(self.times[subject])
        return times[min(int(len(times) * share), len(times) - 1)] * 1e3


def _arguments(directory: Path) -> list[str]:
    arguments = []
    for number in range(EXPORTS):
        node = f"null-co,node-name=disk{number},size={256 * MIB}"
        if number % 2:
            image = directory / f"disk{number}.img"
            image.write_bytes(bytes(64 * MIB))
            node = f"file,node-name=disk{number},filename={image}"
        export = f"vhost-user-blk,id=export{number},node-name=disk{number},writable=on"
        export += f",addr.type=unix,addr.path={directory}/{number}.sock,iothread=io{number}"
        arguments += ["--object", f"iothread,id=io{number}", "--blockdev", node]
        arguments += ["--export", export]
    return arguments


@contextmanager
def monitored(backend: Backend, directory: Path) -> Iterator[tuple[Client, int]]:
    """Run a daemon with its exports and a monitor; gives a client and the daemon's process id."""
    near, far = socket.socketpair()
    with far, (directory / "log").open("wb") as log:
        monitor = ["--chardev", f"socket,id=qmp,fd={far.fileno()}", "--monitor", "chardev=qmp"]
        process = subprocess.Popen(
            [*backend.command, *_arguments(directory), *monitor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[far.fileno()],
            env={**os.environ, **dict(backend.environment)},
        )
    try:
        with near:
            yield Client(near), process.pid
    except DaemonError as error:
        words = (directory / "log").read_text(errors="replace").strip()[-2000:]
        raise DaemonError(f"{backend.name}: {error} {words}") from error
    finally:
        stop(process, backend.grace)


@contextmanager
def loaded(directory: Path, depth: int, niceness: int, outcome: Outcome) -> Iterator[None]:
    """Keep all exports busy inside the block."""
    over = threading.Event()
    counts: Counter[int] = Counter()
    failures: list[Exception] = []
    workload = Workload(seconds=0.5, write_share=0.3, wait_for_calls=True, stall_seconds=30.0)

    def drive(number: int) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        try:
            with FrontEnd(directory / f"{number}.sock", Geometry(depth=depth)) as front_end:
                while not over.is_set():
                    counts[number] += run(front_end, workload).requests
        except Exception as error:
            failures.append(error)

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(EXPORTS)]
    begin = time.monotonic()
    if depth:
        for driver in drivers:
            driver.start()
    try:
        yield
    finally:
        over.set()
        for driver in drivers if depth else ():
            driver.join()
    if failures:
        raise DaemonError(f"the load failed: {failures[0]}")
    outcome.requests += counts.total()
    outcome.seconds += time.monotonic() - begin


def _processors(daemon: int) -> Counter[str]:
    """Return what the processors have done so far, in seconds."""
    user, nice, system, idle, iowait, irq, softirq, steal, *_ = (
        int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    stat = Path(f"/proc/{daemon}/stat").read_text().rsplit(")", 1)[1].split()
    served = (int(stat[11]) + int(stat[12])) / TICKS
    busy = (user + nice + system + irq + softirq + steal) / TICKS
    driven = time.process_time()
    return Counter(
        {
            "idle": (idle + iowait) / TICKS,
            "the daemon": served,
            "front-ends and client": driven,
            "others": busy - served - driven,
        }
    )


def measure(backend: Backend, options: argparse.Namespace, outcome: Outcome) -> None:
    """Give a daemon one turn."""
    with tempfile.TemporaryDirectory(prefix="vhostblk-", dir="/var/tmp") as name:
        directory = Path(name)
        with (
            monitored(backend, directory) as (client, daemon),
            loaded(directory, options.depth, options.nice, outcome),
        ):
            _ask(client, options.warm_up, Outcome())
            before = _processors(daemon)
            _ask(client, options.seconds, outcome)
            after = _processors(daemon)
            after.subtract(before)
            outcome.processors.update(after)


def _ask(client: Client, seconds: float, outcome: Outcome) -> None:
    until = time.monotonic() + seconds
    asked: set[str] = set()
    while time.monotonic() < until:
        for subject, commands in SUBJECTS.items():
            begin = time.perf_counter()
            for command, arguments in commands:
                client.execute(command, arguments)
            taken = time.perf_counter() - begin
            outcome.times.setdefault(subject, []).append(taken)
            if subject not in asked:
                asked.add(subject)
                outcome.first[subject] = max(outcome.first.get(subject, 0.0), taken)
        time.sleep(PAUSE)


def table(outcomes: dict[str, Outcome]) -> str:
    """Format the results, in milliseconds."""
    rows = [["milliseconds", "daemon", "times", "first", *SHARES]]
    for subject in SUBJECTS:
        for name, outcome in outcomes.items():
            values = [outcome.first[subject] * 1e3]
            values += [outcome.percentile(subject, share) for share in SHARES.values()]
            count = str(len(outcome.times[subject]))
            rows.append([subject, name, count, *(f"{value:.2f}" for value in values)])
    return format_table(rows)


def _beside(outcome: Outcome) -> str:
    """Say what the processors did meanwhile."""
    total = max(sum(outcome.processors.values()), 1e-9)
    return ", ".join(f"{name} {spent / total:.0%}" for name, spent in outcome.processors.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = make_parser().parse_args(arguments)
    backends = [vhostblk_backend()]
    if not options.no_qemu:
        with suppress(DaemonError):
            backends.append(qemu_backend(where=options.qemu))
    outcomes = {backend.name: Outcome() for backend in backends}
    try:
        for _ in range(options.rounds):
            for backend in backends:
                measure(backend, options, outcomes[backend.name])
    except (DaemonError, BuildError) as error:
        print(f"benchmarks.qmp_latency: {error}", file=sys.stderr)
        return 2
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{os.cpu_count()} processors (load averages {load}), {EXPORTS} exports with "
        f"{options.depth} requests each, warm-up {options.warm_up:g} s, front-ends' niceness "
        f"{options.nice}\n"
    )
    print(table(outcomes))
    print()
    for backend in backends:
        outcome = outcomes[backend.name]
        rate = outcome.requests / outcome.seconds
        said = f"{rate:,.0f} requests/s; processors: {_beside(outcome)}"
        print(f"{backend.name}: {said} ({version(backend)})")
    ours = outcomes[backends[0].name]
    worst = max(ours.percentile(subject, 0.99) for subject in SUBJECTS)
    verdict = "met" if worst < TARGET else "MISSED"
    print(f"target: p99 below {TARGET:.0f} ms: {verdict} (worst {worst:.2f} ms)")
    return int(worst >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
