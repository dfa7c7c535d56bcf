# SPDX-License-Identifier: Apache-2.0
"""Runs a workload on a front-end's queues and says what came of it."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.loadgen.build import load
from benchmarks.loadgen.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loadgen.client import FrontEnd


class RunError(Exception):
    """A run that ended early; `kind` is the name of the `enum lg_error`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


#: Kinds of RunError that mean wrong data.
MISMATCHES = {
    "LG_WRONG_MAGIC": "foreign contents",
    "LG_WRONG_CHECKSUM": "torn or altered contents",
    "LG_WRONG_BLOCK": "another block's contents",
    "LG_WRONG_GENERATION": "contents of another generation",
    "LG_WRONG_ZEROES": "zeroes instead of data, or data instead of zeroes",
}

_FAILURES = {
    "LG_STALLED": "the device stopped answering, {0.found} requests in flight",
    "LG_DISCONNECTED": "the device hung up, {0.found} requests in flight",
    "LG_IO_ERROR": "request at block {0.error_block} ended with status {0.found}",
    "LG_BAD_USED_INDEX": "used index {0.found} where {0.expected} was seen before",
    "LG_BAD_USED_ID": "used element names {0.found}, which is no request in flight",
    "LG_LOST_INTERRUPT": "requests are complete, but no interrupt came",
    "LG_KICK_FAILED": "the kick descriptor cannot be written",
}


@dataclass(frozen=True)
class Workload:
    """What to do, for how long.

    `rate` is in requests a second, all queues together (None: as fast as the depth allows).
    `think_us` is spent spinning between completions and the requests that follow them. `limit` is a
    number of requests a queue. `span` is the part of the device to use, in bytes.
    """

    seconds: float = 1.0
    write_share: float = 0.0
    zeroes_share: float = 0.0
    flush_share: float = 0.0
    sequential: bool = False
    rate: float | None = None
    limit: int = 0
    span: int | None = None
    seed: int = 1
    threads: int = 1
    think_us: float = 0.0
    wait_for_calls: bool = False
    stall_seconds: float = 5.0


class Ledger:
    """What verification knows of every block; it outlives connections."""

    def __init__(self, blocks: int, seed: int) -> None:
        ffi = load().ffi
        self.blocks = blocks
        self._generation = ffi.new("uint32_t[]", blocks)
        self._pending = ffi.new("uint32_t[]", blocks)
        self._busy = ffi.new("uint8_t[]", blocks)
        self.struct = ffi.new("struct lg_ledger *")
        self.struct.seed = seed
        self.struct.generation = self._generation
        self.struct.pending = self._pending
        self.struct.busy = self._busy

    def forget_in_flight(self) -> None:
        """No request is in flight any more: a connection has ended."""
        load().ffi.memmove(self._busy, bytes(self.blocks), self.blocks)


@dataclass(frozen=True)
class Result:
    """Outcome of one run."""

    seconds: float
    reads: int
    writes: int
    flushes: int
    zeroes: int
    kicks: int
    interrupts: int
    odd_lengths: int
    latency: Histogram = field(repr=False)

    @property
    def requests(self) -> int:
        """Requests answered."""
        return self.reads + self.writes + self.flushes + self.zeroes

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0


def _set_workload(front_end: FrontEnd, workload: Workload, ledger: Ledger | None) -> None:
    """Fill every queue's `struct lg_workload` in.

    Random and verified workloads interleave the queues block by block; a sequential one gives each
    queue a contiguous part.
    """
    block_size = front_end.geometry.block_size
    total = min(workload.span or front_end.info.capacity, front_end.info.capacity) // block_size
    if ledger is not None:
        total = min(total, ledger.blocks)
    count = len(front_end.queues)
    if total < count:
        raise ValueError("the device is too small for the workload")
    contiguous = workload.sequential and ledger is None
    for index, queue in enumerate(front_end.queues):
        target = queue.workload
        target.first_block = total // count * index if contiguous else index
        target.block_stride = 1 if contiguous else count
        target.blocks = total // count
        target.seed = workload.seed * 1000 + index
        target.interval_ns = int(count / workload.rate * 1e9) if workload.rate else 0
        target.limit = workload.limit
        target.write_permille = round(workload.write_share * 1000)
        target.zeroes_permille = round(workload.zeroes_share * 1000)
        target.flush_permille = round(workload.flush_share * 1000)
        target.sequential = workload.sequential
        queue.ledger = ledger.struct if ledger is not None else front_end.loadgen.ffi.NULL


def _make_workers(front_end: FrontEnd, workload: Workload) -> list[tuple[Any, Any]]:
    """Deal the queues out to workers; the second of each pair keeps its array alive."""
    ffi = front_end.loadgen.ffi
    workers = []
    threads = min(workload.threads, len(front_end.queues))
    for number in range(threads):
        mine = front_end.queues[number::threads]
        array = ffi.new("struct lg_queue *[]", mine)
        worker = ffi.new("struct lg_worker *")
        worker.queues = array
        worker.count = len(mine)
        worker.socket_fd = front_end.connection.fileno()
        worker.duration_ns = int(workload.seconds * 1e9)
        worker.stall_ns = int(workload.stall_seconds * 1e9)
        worker.think_ns = int(workload.think_us * 1e3)
        worker.wait_for_calls = workload.wait_for_calls
        workers.append((worker, array))
    return workers


@contextlib.contextmanager
def _started(front_end: FrontEnd, workers: list[tuple[Any, Any]]) -> Iterator[None]:
    """Workers in threads; they are over, one way or the other, when the context ends."""
    lib = front_end.loadgen.lib
    threads = [threading.Thread(target=lib.lg_run, args=(worker,)) for worker, _ in workers]
    for thread in threads:
        thread.start()
    try:
        yield
        for thread in threads:
            thread.join()
    finally:
        for worker, _ in workers:
            lib.lg_stop(worker)
        for thread in threads:
            thread.join()


def _raise_for(front_end: FrontEnd, worker: Any) -> None:
    kind = front_end.loadgen.ffi.string(front_end.loadgen.ffi.cast("enum lg_error", worker.error))
    if kind in MISMATCHES:
        message = (
            f"block {worker.error_block}: {MISMATCHES[kind]} "
            f"(generation expected {worker.expected:#x}, found {worker.found:#x})"
        )
    else:
        message = _FAILURES[kind].format(worker)
    raise RunError(kind, message)


_COUNTERS = (
    *("reads", "writes", "flushes", "zeroes"),
    *("kicks", "interrupts", "odd_lengths"),
)


def _clear_statistics(front_end: FrontEnd) -> None:
    for queue in front_end.queues:
        for name in _COUNTERS:
            setattr(queue, name, 0)
        front_end.loadgen.ffi.memmove(
            queue.histogram, bytes(8 * len(queue.histogram)), 8 * len(queue.histogram)
        )


def run(front_end: FrontEnd, workload: Workload, ledger: Ledger | None = None) -> Result:
    """Run to the end; raises RunError. After an error only `close` is left to do."""
    _set_workload(front_end, workload, ledger)
    _clear_statistics(front_end)
    workers = _make_workers(front_end, workload)
    with _started(front_end, workers):
        pass
    for worker, _ in workers:
        if worker.error:
            _raise_for(front_end, worker)
    begin = min(worker.started_ns for worker, _ in workers)
    end = max(worker.finished_ns for worker, _ in workers)
    counters = {name: sum(getattr(queue, name) for queue in front_end.queues) for name in _COUNTERS}
    latency = Histogram.merge(Histogram(list(queue.histogram)) for queue in front_end.queues)
    return Result(seconds=(end - begin) / 1e9, latency=latency, **counters)
