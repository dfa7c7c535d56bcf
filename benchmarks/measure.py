# SPDX-License-Identifier: Apache-2.0
"""The measurements of the comparison: throughput case by case, and what the daemons consume.

The daemons of a case run at the same time, and only one of them has work at any time: they take
turns, round after round, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import contextlib
import mmap
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from benchmarks.cases import Case, disk_for, image_path
from benchmarks.daemons import Backend, Daemon, DaemonError, Disk, running
from benchmarks.libblkio.client import run_bench
from benchmarks.loadgen.bare import bare_rate
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import Result, RunError, Workload, run

if TYPE_CHECKING:
    from pathlib import Path

WARM_UP_SECONDS = 0.1
IDLE_SECONDS = 1.0
FOOTPRINT_EXPORTS = 10
#: Writes that a daemon warms up with on an image that a run uses up.
WARM_UP_WRITES = 128


@dataclass(frozen=True)
class Settings:
    """What holds for the whole comparison."""

    backends: tuple[Backend, ...]
    directories: dict[str, Path]
    seconds: float = 2.0
    rounds: int = 5
    size: int = 1 << 30
    threads: int = 1
    rates: tuple[int, ...] = (5000, 50000)
    #: Who makes the load: "loadgen" or "libblkio".
    client: str = "loadgen"
    #: The QEMU daemon's aio for every case, instead of the case's own.
    aio: str | None = None
    #: Measure in each round what a bare loop of system calls does, too.
    bare: bool = False


@dataclass
class Point:
    """Measurements of one back-end at one depth of one case, a sample each round."""

    iops: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def add(self, result: Result, cpu_seconds: float) -> None:
        """Take a round's result."""
        self.iops.append(result.iops)
        self.p50_us.append(result.latency.percentile(50) / 1e3)
        self.p99_us.append(result.latency.percentile(99) / 1e3)
        self.cpu_us.append(cpu_seconds / max(result.requests, 1) * 1e6)

    def median(self, name: str) -> float:
        """Median of one of the lists."""
        samples: list[float] = getattr(self, name)
        return statistics.median(samples)


@dataclass
class Row:
    """One row of the table: a case at a depth, a point for each back-end.

    `bare` are the calls a second of a bare loop of system calls, a sample each round.
    """

    case: Case
    depth: int
    points: dict[str, Point]
    rate: int | None = None
    bare: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Footprint:
    """What a daemon takes without load."""

    backend: str
    exports: int
    start_ms: float
    memory_mib: float
    memory_used_mib: float
    idle_cpu_percent: float


Progress = Callable[[str], None]


def backends_for(case: Case, settings: Settings) -> list[Backend]:
    """Return the back-ends that differ in a case: where there is no file, `aio` means nothing."""
    chosen: list[Backend] = []
    for backend in settings.backends:
        qemus = [other for other in chosen if other.name.startswith("qemu")]
        if case.place != "null" or not (backend.aio and qemus):
            chosen.append(backend)
    return chosen


def _for_case(backend: Backend, case: Case, settings: Settings) -> Backend:
    """The back-end with the aio that the case is best served with, if it knows aio at all."""
    if not backend.name.startswith("qemu") or backend.aio or case.place == "null":
        return backend
    return replace(backend, aio=settings.aio or case.aio)


#: Who serves a turn of the back-end with this name.
Turn = Callable[[str], contextlib.AbstractContextManager[Daemon]]


@contextlib.contextmanager
def _daemon(backend: Backend, case: Case, settings: Settings) -> Iterator[Daemon]:
    """A daemon with its image; one that the case uses up goes afterwards, before it is written."""
    disk = disk_for(case, backend, settings.directories, settings.size)
    tuned = _for_case(backend, case, settings)
    with running(tuned, disk, settings.directories["run"]) as daemon:
        yield daemon
    if case.allocates:
        image_path(case, backend, settings.directories).unlink()


@contextlib.contextmanager
def _turns(case: Case, settings: Settings) -> Iterator[Turn]:
    """Have daemons that run all the time, or a new one with a new image for each turn."""
    backends = {backend.name: backend for backend in backends_for(case, settings)}
    if case.allocates:
        yield lambda name: _daemon(backends[name], case, settings)
        return
    with contextlib.ExitStack() as stack:
        daemons = {
            name: stack.enter_context(_daemon(backend, case, settings))
            for name, backend in backends.items()
        }
        yield lambda name: contextlib.nullcontext(daemons[name])


def _workload(case: Case, settings: Settings, rate: int | None, seed: int) -> Workload:
    return Workload(
        seconds=settings.seconds,
        write_share=1.0 if case.write else 0.0,
        sequential=case.sequential,
        limit=case.limit(settings.size) // case.queues,
        span=settings.size,
        rate=rate,
        seed=seed,
        threads=settings.threads,
        think_us=case.think_us,
    )


def _warm_up(case: Case, workload: Workload) -> Workload:
    """The same for a short time; where that uses an image up, a few requests."""
    if case.allocates:
        return replace(workload, limit=WARM_UP_WRITES, seed=workload.seed + 1000)
    return replace(workload, seconds=min(WARM_UP_SECONDS, workload.seconds))


def _touch_memory(size: int) -> None:
    """Have so much free memory at hand for the page cache.

    Machines that give free memory back to their host get it again at a price of several times the
    write's: that would decide whose turn is the fast one.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


def _measure(
    daemon: Daemon, case: Case, depth: int, settings: Settings, rate: int | None, seed: int
) -> tuple[Result, float]:
    """One round of one daemon: connect, warm up, run. Returns the result and its CPU time."""
    daemon.require_alive()
    if settings.client == "libblkio":
        return _measure_libblkio(daemon, case, depth, settings, seed)
    geometry = Geometry(queues=case.queues, depth=depth, block_size=case.block_size)
    workload = _workload(case, settings, rate, seed)
    with FrontEnd(daemon.sockets[0], geometry) as front_end:
        run(front_end, _warm_up(case, workload))
        if case.allocates:
            _touch_memory(settings.size)
        before = daemon.cpu_seconds()
        result = run(front_end, workload)
        return result, daemon.cpu_seconds() - before


def _measure_libblkio(
    daemon: Daemon, case: Case, depth: int, settings: Settings, seed: int
) -> tuple[Result, float]:
    return run_bench(
        daemon.sockets[0],
        depth=depth,
        block_size=case.block_size,
        span=settings.size,
        write=case.write,
        sequential=case.sequential,
        warm_up=min(WARM_UP_SECONDS, settings.seconds),
        seconds=settings.seconds,
        seed=seed,
        cpu_seconds=daemon.cpu_seconds,
    )


def _measure_bare(case: Case, depth: int, settings: Settings, seed: int) -> list[float]:
    """Measure the bare loop on the first daemon's image; nothing where that says nothing.

    How fast a file is depends on how it lies in the page cache: it has to be the same one.
    """
    if not settings.bare or case.place == "null" or case.allocates or (case.image and case.write):
        return []  # writing would make another image of it
    rate = bare_rate(
        image_path(case, settings.backends[0], settings.directories),
        seconds=settings.seconds,
        block_size=case.block_size,
        buffers=depth,
        write=case.write,
        sequential=case.sequential,
        direct=case.direct,
        seed=seed,
    )
    return [rate]


def measure_case(
    case: Case, settings: Settings, progress: Progress, rates: Sequence[int | None] = (None,)
) -> list[Row]:
    """Measure every depth (and every rate) of a case, all back-ends in turn."""
    rows = []
    names = [backend.name for backend in backends_for(case, settings)]
    with _turns(case, settings) as turns:
        for depth in case.depths:
            for rate in rates:
                points = {name: Point() for name in names}
                bare: list[float] = []
                for turn in range(settings.rounds):
                    for name in names:
                        progress(f"{case.name} depth {depth}: {name}, round {turn + 1}")
                        with turns(name) as daemon:
                            try:
                                sample = _measure(daemon, case, depth, settings, rate, turn + 1)
                            except (OSError, ProtocolError, RunError) as error:
                                daemon.require_alive()
                                raise DaemonError(
                                    f"{case.name} depth {depth}: {name}: {error}"
                                ) from error
                        points[name].add(*sample)
                    if rate is None:
                        bare += _measure_bare(case, depth, settings, turn + 1)
                rows.append(Row(case, depth, points, rate, bare))
    return rows


def measure_footprint(backend: Backend, settings: Settings, progress: Progress) -> Footprint:
    """Start-up time, memory with ten exports before and after use, and CPU time when idle."""
    progress(f"footprint: {backend.name}")
    disk = Disk("null-co", (f"size={settings.size}",))
    with running(backend, disk, settings.directories["run"], FOOTPRINT_EXPORTS) as daemon:
        memory = daemon.memory()
        with contextlib.ExitStack() as stack:
            for path in daemon.sockets:
                front_end = stack.enter_context(FrontEnd(path, Geometry(depth=32)))
                run(front_end, Workload(seconds=WARM_UP_SECONDS))
            used = daemon.memory()
            time.sleep(0.2)
            before = daemon.cpu_seconds()
            time.sleep(IDLE_SECONDS)
            idle = (daemon.cpu_seconds() - before) / IDLE_SECONDS
        return Footprint(
            backend.name,
            FOOTPRINT_EXPORTS,
            daemon.start_seconds * 1e3,
            memory / (1 << 20),
            used / (1 << 20),
            idle * 100,
        )
