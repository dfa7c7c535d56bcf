# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.verify`: hours of mixed load in which every block read is checked.

One disk is filled with known contents and then worked on in short runs, each with other depths,
queues, request sizes and manners (polling or interrupts, full speed or a fixed rate), over new
connections, with pauses in between. Every block says where it belongs and which write it came
from, so that lost, doubled, torn and misdirected writes show. The exit status is 1 if one does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.compare import parse_backend
from benchmarks.daemons import ROOT, Backend, Daemon, DaemonError, Disk, running, stop
from benchmarks.loadgen.build import BuildError
from benchmarks.loadgen.client import (
    F_FLUSH,
    F_RING_PACKED,
    F_WRITE_ZEROES,
    FrontEnd,
    Geometry,
)
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import MISMATCHES, Ledger, RunError, Workload, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_PAUSE = 0.3
#: How many of the connections end in the daemon's death, with --kill.
KILL_SHARE = 0.3
#: How long the image may stay locked after the daemon's death.
LOCK_SECONDS = 10.0
#: How long a hand-over may take, the start of the new daemon included.
HANDOVER_SECONDS = 60.0
#: A limit that no run reaches: the fill ends by time only if the device is slow.
FILL_SECONDS = 3600.0


@dataclass
class Totals:
    """What has been done so far."""

    requests: int = 0
    reads: int = 0
    connections: int = 0
    kills: int = 0
    handovers: int = 0
    interrupts: int = 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    add = parser.add_argument
    add("--socket", type=Path, help="a listening back-end, instead of a daemon started here")
    add("--backend", default="vhostblk", help="vhostblk[:LANE] or qemu[:AIO]")
    add("--no-iothread", action="store_true", help="exports on the main thread")
    add("--image", type=Path, help="image file (overwritten!); default: a temporary one")
    add("--driver", default="file", help="driver of the block node")
    add("--direct", action="store_true", help="cache.direct=on")
    add("--size", type=int, default=256, help="MiB to work on")
    add("--queues", type=int, default=4, help="queues of the export")
    add("--block-size", type=int, default=4096, help="bytes a request")
    add("--duration", type=float, default=60.0, help="seconds")
    add("--run-seconds", type=float, default=1.0, help="longest run between two pauses")
    add("--rate", type=float, help="requests a second at most; mostly waits for interrupts then")
    add("--patience", type=float, default=5.0, help="seconds until no answer is a failure")
    add("--kill", action="store_true", help="kill the daemon in the middle of runs now and then")
    add("--recover", action="store_true", help="kill it, and go on with what was in flight")
    add("--handover", action="store_true", help="have new daemons take over in the middle of runs")
    add("--kills", type=int, help="with --recover: at depth 32, until it was killed so often")
    add("--switch", action="store_true", help="vhostblk changes lanes and drains all the while")
    add("--packed", action="store_true", help="packed rings on all connections; else on some")
    add("--split", action="store_true", help="split rings on all connections")
    add("--seed", type=int, help="of all random choices (default: the time)")
    return parser


class Verifier:
    """A verification run against one back-end."""

    def __init__(self, options: argparse.Namespace, target: Target, seed: int) -> None:
        self.options = options
        self.target = target
        self.random = random.Random(seed)
        self.ledger = Ledger((options.size << 20) // options.block_size, seed)
        self.totals = Totals()
        self._has_packed = False

    def fill(self) -> None:
        """Write every block once, so that everything read later is known."""
        geometry = Geometry(depth=32, block_size=self.options.block_size)
        workload = Workload(
            seconds=FILL_SECONDS, write_share=1.0, sequential=True, limit=self.ledger.blocks
        )
        with self._connected(geometry) as front_end:
            self._has_packed = front_end.info.has(F_RING_PACKED)
            self._count(front_end, workload)

    def session(self, deadline: float) -> None:
        """One connection: a few runs with pauses in between, then stop or just hang up."""
        geometry = self._geometry()
        with self._connected(geometry) as front_end:
            done = 0
            for _ in range(self.random.randint(1, 4)):
                if time.monotonic() > deadline:
                    break
                done += self._count(front_end, self._workload(front_end))
                if self.random.random() < 0.5:
                    time.sleep(self.random.uniform(0, MAX_PAUSE))
            if self.random.random() < 0.5:
                self._check_bases(front_end)

    def killed_session(self, target: Target) -> None:
        """One connection that ends with the daemon's violent death in the middle of a run.

        A write that was not answered may or may not have happened; the ledger allows for both.
        """
        with self._connected(self._geometry()) as front_end:
            self._run_until_killed(front_end, target)
        self.totals.kills += 1
        target.start()

    def recovered_session(self, target: Target, deadline: float) -> None:
        """One connection through several violent deaths of the daemon.

        Each new process has to finish what the last one left in flight: nothing may be lost, and
        the ledger stays exact.
        """
        with self._connected(replace(self._geometry(), inflight=True)) as front_end:
            for _ in range(self.random.randint(1, 20)):
                if time.monotonic() > deadline or self.killed_enough:
                    break
                self._run_until_killed(front_end, target)
                target.start()
                self.totals.kills += 1
                front_end.reconnect(target.socket, self.options.patience)
            self._count(front_end, self._workload(front_end))
            self._check_bases(front_end)

    def handed_over_session(self, target: Target, deadline: float) -> None:
        """One connection through several daemons, each of which takes over from the one before."""
        inflight = self.random.random() < 0.5
        with self._connected(replace(self._geometry(), inflight=inflight)) as front_end:
            for _ in range(self.random.randint(1, 10)):
                if time.monotonic() > deadline:
                    break
                failures: list[Exception] = []
                taking = threading.Timer(
                    self.random.uniform(0.0, 0.2), target.take_over, [failures]
                )
                taking.start()
                while taking.is_alive():
                    self._count(front_end, self._workload(front_end))
                taking.join()
                if failures:
                    raise failures[0]
                self.totals.handovers += 1
            self._count(front_end, self._workload(front_end))
            self._check_bases(front_end)

    def _run_until_killed(self, front_end: FrontEnd, target: Target) -> None:
        assert target.daemon is not None
        timer = threading.Timer(self.random.uniform(0.0, 0.3), target.daemon.process.kill)
        timer.start()
        try:
            self._count(front_end, replace(self._workload(front_end), seconds=FILL_SECONDS))
        except RunError as error:
            if error.kind != "LG_DISCONNECTED":
                raise
        finally:
            timer.join()

    @property
    def killed_enough(self) -> bool:
        """Tell whether the daemon was killed as often as it was to be."""
        return self.options.kills is not None and self.totals.kills >= self.options.kills

    def read_all(self) -> None:
        """Read every block once."""
        geometry = Geometry(depth=32, block_size=self.options.block_size)
        workload = Workload(seconds=FILL_SECONDS, sequential=True, limit=self.ledger.blocks)
        with self._connected(geometry) as front_end:
            self._count(front_end, workload)

    @contextlib.contextmanager
    def _connected(self, geometry: Geometry) -> Iterator[FrontEnd]:
        self.ledger.forget_in_flight()
        self.totals.connections += 1
        patience = self.options.patience
        with FrontEnd(self.target.socket, geometry, timeout=patience) as front_end:
            yield front_end

    def _geometry(self) -> Geometry:
        choose = self.random.choice
        segments = [count for count in (1, 2, 4) if self.options.block_size % (512 * count) == 0]
        return Geometry(
            queues=self.random.randint(1, self.options.queues),
            depth=choose([1, 2, 8, 32, 128]) if self.options.kills is None else 32,
            block_size=self.options.block_size,
            segments=choose(segments),
            event_idx=self.random.random() < 0.8,
            indirect=self.random.random() < 0.5,
            packed=self._packed(),
        )

    def _packed(self) -> bool:
        """Choose; where the device can't be asked for them, rings are split."""
        chance = self.random.random() < 0.5
        options = self.options
        return bool(options.packed or (chance and self._has_packed and not options.split))

    def _workload(self, front_end: FrontEnd) -> Workload:
        info = front_end.info
        limit = self.options.rate
        rates = [limit, limit / 4] if limit else [None, None, 1000.0, 20000.0]
        return Workload(
            seconds=self.random.uniform(0.05, self.options.run_seconds),
            write_share=self.random.choice([0.1, 0.5, 0.9]),
            zeroes_share=0.02 if info.has(F_WRITE_ZEROES) else 0.0,
            flush_share=0.01 if info.has(F_FLUSH) else 0.0,
            sequential=self.random.random() < 0.2,
            rate=self.random.choice(rates),
            seed=self.random.getrandbits(32),
            threads=self.random.randint(1, 2),
            wait_for_calls=self.random.random() < (0.9 if limit else 0.5),
        )

    def _count(self, front_end: FrontEnd, workload: Workload) -> int:
        patient = replace(workload, stall_seconds=self.options.patience)
        result = run(front_end, patient, self.ledger)
        self.totals.requests += result.requests
        self.totals.reads += result.reads
        self.totals.interrupts += result.interrupts
        return result.requests

    def _check_bases(self, front_end: FrontEnd) -> None:
        """A stopped device must have taken exactly what was made available."""
        base = front_end.loadgen.lib.lg_base
        expected = [base(queue) for queue in front_end.queues]
        bases = front_end.stop()
        if bases != expected:
            raise ProtocolError(f"GET_VRING_BASE gives {bases} instead of {expected}")


def _verify(options: argparse.Namespace, target: Target) -> None:
    seed = options.seed if options.seed is not None else time.time_ns() & 0xFFFF_FFFF
    print(f"seed {seed}", flush=True)
    begin = time.monotonic()
    deadline = begin + options.duration
    verifier = Verifier(options, target, seed)
    verifier.fill()
    shown = 0.0
    while time.monotonic() < deadline and not verifier.killed_enough:
        if options.kill and target.daemon is not None and verifier.random.random() < KILL_SHARE:
            verifier.killed_session(target)
        elif options.handover:
            verifier.handed_over_session(target, deadline)
        elif options.recover:
            verifier.recovered_session(target, deadline)
        else:
            verifier.session(deadline)
        target.require_alive()
        if time.monotonic() > shown + 10:
            shown = time.monotonic()
            _show(verifier.totals, shown - begin, target.disturbances())
    verifier.read_all()
    _show(verifier.totals, time.monotonic() - begin, target.disturbances())


def _show(totals: Totals, seconds: float, disturbances: str) -> None:
    print(
        f"{seconds:7.1f} s  {totals.requests:,} requests, {totals.reads:,} reads checked, "
        f"{totals.connections:,} connections, {totals.interrupts:,} interrupts, "
        f"{totals.kills} kills, {totals.handovers} hand-overs{disturbances}",
        flush=True,
    )


def _disk(options: argparse.Namespace, directory: Path) -> Disk:
    image = options.image or directory / "verify.img"
    with image.open("ab") as file:
        file.truncate(options.size << 20)
    arguments = [f"filename={image}"]
    if options.direct:
        arguments.append("cache.direct=on")
    return Disk(options.driver, tuple(arguments), queues=options.queues)


class Target:
    """The back-end: a socket of somebody else's, or a daemon that can be killed and restarted."""

    def __init__(self, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self.socket: Path = options.socket
        self.daemon: Daemon | None = None
        self._run_folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.socket is None:
            parent = ROOT / ".cache"
            parent.mkdir(exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
            self._backend = parse_backend(options.backend, iothread=not options.no_iothread)
            if options.switch:
                self._backend = self._switching_backend()
            self._handover = self._run_folder / "handover"
            if options.handover:
                words = ("--handover", str(self._handover))
                self._backend = replace(self._backend, command=(*self._backend.command, *words))
            self._disk = _disk(options, folder)
            self._stack = stack.enter_context(contextlib.ExitStack())
            self.start()

    @property
    def _count_file(self) -> Path:
        return self._run_folder / "disturbances"

    def _switching_backend(self) -> Backend:
        if self._backend.name != "vhostblk":
            raise ValueError("--switch is for --backend vhostblk, without a lane")
        command = (sys.executable, "-m", "benchmarks.switching", "--count", str(self._count_file))
        return replace(self._backend, command=command)

    def disturbances(self) -> str:
        """Say what the daemon did to itself, all its lives together."""
        counts: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):  # not there yet, or just being written
            counts = json.loads(self._count_file.read_text())
        return "".join(f", {count:,} {name}" for name, count in counts.items())

    def start(self) -> None:
        """Start the daemon, or start it again after its end."""
        self._stack.close()
        deadline = time.monotonic() + LOCK_SECONDS
        while self.daemon is None or self.daemon.process.poll() is not None:
            try:
                daemon = running(self._backend, self._disk, self._run_folder)
                self.daemon = self._stack.enter_context(daemon)
            except DaemonError as error:
                # The kernel may still be busy with requests of the former process. Until they are
                # done they keep its file open, and locked.
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
        self.socket = self.daemon.sockets[0]

    def take_over(self, failures: list[Exception]) -> None:
        """Have a new daemon take over from the one that runs; tell there where that fails."""
        assert self.daemon is not None
        try:
            with self.daemon.log.open("ab") as log:
                process = subprocess.Popen(
                    [*self._backend.command, "--takeover", str(self._handover)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **dict(self._backend.environment)},
                )
            self._stack.callback(stop, process, self._backend.grace)
            former, self.daemon.process = self.daemon.process, process
            status = former.wait(HANDOVER_SECONDS)
            self.daemon.require_alive()
            if status:
                raise DaemonError(f"the former daemon ended with {status}")
        except (OSError, DaemonError, subprocess.TimeoutExpired) as error:
            failures.append(error)

    def require_alive(self) -> None:
        """Raise DaemonError if our daemon has ended."""
        if self.daemon is not None:
            self.daemon.require_alive()


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify; return the exit status: 0 all right, 1 mismatch or failure."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.kills is not None and not options.recover:
        parser.error("--kills goes with --recover")
    try:
        with contextlib.ExitStack() as stack:
            _verify(options, Target(options, stack))
    except RunError as error:
        word = "MISMATCH" if error.kind in MISMATCHES else "FAILURE"
        print(f"{word}: {error}", file=sys.stderr)
        return 1
    except (
        DaemonError,
        ProtocolError,
        BuildError,
        OSError,
        ValueError,
        subprocess.TimeoutExpired,
    ) as error:
        print(f"benchmarks.verify: {error}", file=sys.stderr)
        return 1
    print("no mismatch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
