# SPDX-License-Identifier: Apache-2.0
"""Runs a guest's bursts of requests, and reads the sectors that they have touched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.model.content import SECTOR, ZERO, encode
from tests.model.disk import NEVER
from tests.model.guests import WRITES, Request
from tests.model.program import Burst, Op
from tests.model.stack import COPIES
from tests.model.world import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.model.disk import Change, Disk
    from tests.model.world import DiskState, World

#: Maximum number of bytes in flight.
_BYTES = 32 << 20
#: Verification: number of sectors in each read, and maximum number after one step.
_CHUNK, _ENOUGH = 2048, 16384


class RequestError(AssertionError):
    """A request failed without a reason."""


class HangError(AssertionError):
    """Requests were not completed."""


class Player:
    """Makes requests with the depth of a burst, and records them in the models."""

    def __init__(self, world: World) -> None:
        self._world = world
        options = world.options
        self._apart = any(kind in COPIES for kind in (*options.above, *options.below))
        packs = options.format == "qcow2" and not (options.top or options.above)
        self._packs = packs and options.lane == "backend" and not options.data_file

    # Requests that fit the disk.

    def _fit(self, state: DiskState, op: Op) -> Op:
        """Return a request like `op` that fits the disk's present size."""
        options, size = self._world.options, state.model.size
        kind = op.kind
        if kind == "packed" and (not self._packs or state.index):
            kind = "write"
        if kind == "fua" and options.lane != "backend" and not state.index:
            kind = "write"
        if kind == "discard" and self._apart:
            kind = "read"
        if kind == "flush":
            return Op("flush", 0, 0)
        unit = options.block
        if kind == "packed":
            unit = self._world.daemon.graph.find(state.stack.active.node).cluster_size // SECTOR
        first = op.first % size // unit * unit
        count = min(-(-max(op.length, 1) // unit) * unit, size - first)
        return Op(kind, first, count)

    # Bursts.

    async def play(
        self, burst: Burst, meanwhile: Callable[[], Iterator[asyncio.Task[None]]]
    ) -> None:
        """Make the requests of a burst; once some are in flight, call `meanwhile` to start acts."""
        state = self._world.disks[burst.disk % len(self._world.disks)]
        await self._run(state, burst.requests(), burst.depth, meanwhile)

    async def _run(
        self,
        state: DiskState,
        ops: Iterable[Op],
        depth: int,
        meanwhile: Callable[[], Iterator[asyncio.Task[None]]] | None = None,
    ) -> None:
        run = _Run(self._world, state, apart=self._apart)
        waiting: list[Op] = []
        source = iter(ops)
        depth = max(1, min(depth, state.guest.depth))
        beside: list[asyncio.Task[None]] = []
        while True:
            batch: list[Op] = []
            while run.goes_on and run.in_flight + len(batch) < depth and run.room:
                op = waiting.pop() if waiting else next(source, None)
                if op is None:
                    break
                op = self._fit(state, op)
                if not run.may_start(op, batch):
                    waiting.append(op)
                    break
                batch.append(op)
            if batch:
                run.submit(batch)
            if meanwhile is not None:
                beside += meanwhile()
                meanwhile = None
            if run.in_flight:
                await run.progress()
            elif not waiting or not run.goes_on:
                break
        for task in beside:
            await task
        run.check()

    # Verifying.

    async def verify(self, state: DiskState) -> None:
        """Read the sectors that the last step has touched, up to a limit."""
        budget = _ENOUGH
        wanted: list[Op] = []
        for first, count in _joined(state.touched, state.model.size):
            if budget <= 0:
                break
            taken = min(count, budget)
            wanted += _reads(first, taken)
            budget -= taken
        state.touched = []
        await self._run(state, wanted, 8)
        state.touched = []

    async def verify_all(self, state: DiskState) -> None:
        """Read the whole disk."""
        await self._run(state, _reads(0, state.model.size), 8)
        state.touched = []


class _Run:
    """The requests of one burst."""

    def __init__(self, world: World, state: DiskState, *, apart: bool) -> None:
        self._world = world
        self._state = state
        self._apart = apart
        self._active: dict[int, Op] = {}
        self._bytes = 0
        self._number = 0
        self._epoch = world.epoch
        self._news = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self._active)

    @property
    def goes_on(self) -> bool:
        """Whether the burst continues: there was no crash."""
        return self._epoch == self._world.epoch

    @property
    def room(self) -> bool:
        return self._bytes < _BYTES

    def may_start(self, op: Op, batch: Sequence[Op]) -> bool:
        """Return whether a request may start while the others are in flight."""
        if not self._apart:
            return True
        return not any(
            op.first < other.first + other.length and other.first < op.first + op.length
            for other in (*self._active.values(), *batch)
        )

    def submit(self, ops: Sequence[Op]) -> None:
        requests = [self._request(op) for op in ops]
        self._state.guest.submit(requests)
        self.check()

    def _request(self, op: Op) -> Request:
        world, state, model = self._world, self._state, self._state.model
        self._number += 1
        number = self._number
        self._active[number] = op
        self._bytes += op.length * SECTOR
        refusals = world.yard.refusals
        data = b""
        if op.kind == "read":
            begun = model.begin_read(op.first, op.length)

            def finish(read: bytes | None) -> None:
                self._ended(number, op, refusals, failed=read is None)
                if read is not None and self.goes_on:
                    model.end_read(op.first, begun, read)

        elif op.kind == "flush":
            start = world.clock.tick()

            def finish(read: bytes | None) -> None:
                self._ended(number, op, refusals, failed=read is None)
                if read is not None and self.goes_on:
                    model.flushed(start)

        else:
            writes = op.kind in WRITES and op.kind != "blank"
            value = world.clock.token() if writes else ZERO
            change = model.begin(op.first, op.length, value, discard=op.kind == "discard")
            through = op.kind == "fua" or not state.write_cache
            state.touched.append((op.first, op.length))
            if op.kind in WRITES:
                data = encode(value, op.first, op.length)
            for bitmap in state.bitmaps.values():
                bitmap.started(op.first, op.length)

            def finish(read: bytes | None) -> None:
                failed = read is None or not self.goes_on
                self._finish_change(model, op, change, failed=failed, through=through)
                self._ended(number, op, refusals, failed=read is None)

        return Request(op, data, finish)

    def _finish_change(
        self, model: Disk, op: Op, change: Change, *, failed: bool, through: bool
    ) -> None:
        # Discards need not be durable; and the cache may have been turned on meanwhile.
        through = through and op.kind != "discard"
        through = through and (op.kind == "fua" or not self._state.write_cache)
        if change.end == NEVER:  # else a crash has ended it already
            model.end(change, failed=failed, through=through)
        for bitmap in self._state.bitmaps.values():
            bitmap.started(op.first, op.length)  # a bitmap added meanwhile may contain it
            if not failed and op.kind != "discard":
                bitmap.succeeded(op.first, op.length, change.start)

    def _ended(self, number: int, op: Op, refusals: int, *, failed: bool) -> None:
        del self._active[number]
        self._bytes -= op.length * SECTOR
        self._news.set()
        yard = self._world.yard
        if failed and self.goes_on and yard.refusals == refusals:
            raise RequestError(f"{op} failed")

    async def progress(self) -> None:
        """Wait until a request has ended."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._news.wait()
        except TimeoutError:
            ops = list(self._active.values())[:4]
            raise HangError(f"{self.in_flight} requests are not answered: {ops}") from None
        self._news.clear()
        self.check()

    def check(self) -> None:
        """Raise the error that was found meanwhile, if any."""
        if self._state.guest.failure is not None:
            raise self._state.guest.failure


def _reads(first: int, count: int) -> list[Op]:
    return [
        Op("read", at, min(_CHUNK, first + count - at))
        for at in range(first, first + count, _CHUNK)
    ]


def _joined(ranges: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return ranges of a disk, with overlapping and adjacent ones joined."""
    found: list[tuple[int, int]] = []
    for low, length in sorted(ranges):
        high = min(low + length, size)
        if low >= high:
            continue
        if found and low <= found[-1][0] + found[-1][1]:
            start = found[-1][0]
            found[-1] = (start, max(found[-1][0] + found[-1][1], high) - start)
        else:
            found.append((low, high - low))
    return found
