# SPDX-License-Identifier: Apache-2.0
"""Budgets that iothreads take from: what they do by themselves, what goes up, and nothing twice."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.support import Rig, spend
from tests.virtio_blk.support import MIB
from vhostblk.engine import load
from vhostblk.engine.buckets import READ, WRITE
from vhostblk.engine.budget import EngineBudget
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.engine.timer import LoopTimer, PreciseTimer, make_timer
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable

_engine = load()
assert _engine is not None

IN, OUT = RequestType.IN, RequestType.OUT

SECOND = 10**9

#: Bytes a second in all, so few that nothing leaks in the time of a test.
SLOW = [(1, 0, 1)] + [(0, 0, 1)] * 5
UNLIMITED = [(0, 0, 1)] * 6


def make(rates: list[tuple[int, int, int]]) -> EngineBudget:
    assert _engine is not None
    budget = EngineBudget(*_engine)
    budget.configure(rates, 0, time.monotonic_ns())
    return budget


def null_map(budget: EngineBudget, **members: Any) -> ExtentMap:
    return ExtentMap(ExtentKind.NULL, MIB, writable=True, budget=budget, **members)


@pytest.mark.parametrize("io", ["uring", "pool"])
def test_what_is_within_the_budget_does_not_go_up(io: str) -> None:
    # A thousand bytes over the brim take as many seconds to leak.
    budget = make([(1, 4096, 1)] + [(0, 0, 1)] * 5)
    with Rig(io) as rig:
        queue = rig.queue(null_map(budget))
        for _ in range(9):  # the ninth finds the bucket full to the brim, and not over it
            queue.run(IN, want=512)
        pending = queue.request(OUT, send=bytes(512))
        (upcall,) = rig.wait_upcalls()
        assert upcall.head == pending.head
        queue.complete(upcall)
        queue.used()
        assert queue.stats()["upcalls"] == 1


def test_what_went_up_is_not_accounted_for() -> None:
    budget = make(SLOW)
    with Rig() as rig:
        queue = rig.queue(null_map(budget))
        queue.run(IN, want=512)
        before = budget.take(READ, 512, time.monotonic_ns(), False)
        for _ in range(5):
            queue.request(IN, want=512)
        for upcall in rig.wait_upcalls(5):
            queue.complete(upcall)
        queue.used(5)
        assert budget.take(READ, 512, time.monotonic_ns(), False) <= before


def test_nobody_overtakes_those_who_wait() -> None:
    budget = make(SLOW)
    now = time.monotonic_ns()
    assert spend(budget, READ, 512, now)
    assert not spend(budget, READ, 512, now)
    # The bucket has leaked, but the one that went up comes first.
    later = now + 10_000 * SECOND
    assert not spend(budget, READ, 1, later)
    assert spend(budget, WRITE, 1, later)
    assert budget.take(READ, 512, 2 * later, True) == 0
    assert not spend(budget, READ, 1, 3 * later)
    assert budget.take(READ, 512, 4 * later, False) == 0
    assert spend(budget, READ, 1, 5 * later)
    budget.charge(READ, 1, True)
    assert not spend(budget, READ, 1, 6 * later)
    budget.charge(READ, 1, False)
    assert spend(budget, READ, 1, 7 * later)


def test_without_limits_the_gate_does_not_matter() -> None:
    budget = make(UNLIMITED)
    budget.charge(READ, 1, True)
    assert spend(budget, READ, 1 << 40, 0)


@pytest.mark.parametrize("discard", [Treatment.ASK, Treatment.IGNORE])
def test_zero_writes_and_discards_that_are_done_go_up(discard: Treatment) -> None:
    segment = (0).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    with Rig() as rig:
        queue = rig.queue(null_map(make(UNLIMITED), discard=discard))
        kinds = [RequestType.WRITE_ZEROES]
        if discard is Treatment.IGNORE:
            queue.run(RequestType.DISCARD, send=segment)
        else:
            kinds.append(RequestType.DISCARD)
        for kind in kinds:
            queue.request(kind, send=segment)
            (upcall,) = rig.wait_upcalls()
            assert upcall.type == kind
            queue.complete(upcall)
            queue.used()


def test_threads_take_no_more_than_there_is() -> None:
    budget = make([(0, 0, 1)] * 3 + [(1, 20_000, 1)] + [(0, 0, 1)] * 2)
    now = time.monotonic_ns()
    taken = []

    def spend_all() -> None:
        count = 0
        while spend(budget, count % 2, 512, now):
            count += 1
        taken.append(count)

    threads = [threading.Thread(target=spend_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each direction closes on its own; the brim is passed by one request.
    assert 20_000 <= sum(taken) <= 20_001


@pytest.mark.parametrize("kind", [LoopTimer, None])
def test_timers(kind: Callable[[Callable[[], object]], LoopTimer] | None) -> None:
    import asyncio

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fired: asyncio.Queue[int] = asyncio.Queue()
        timer = (kind or make_timer)(lambda: fired.put_nowait(time.monotonic_ns()))
        assert type(timer) is (kind or PreciseTimer)
        timer.cancel()
        timer.set(3600 * SECOND)
        begin = time.monotonic_ns()
        timer.set(2_000_000)
        async with asyncio.timeout(20):
            assert await fired.get() - begin >= 1_900_000
        timer.set(1)
        timer.cancel()
        timer.set(1)
        timer.set(3600 * SECOND)
        done = loop.create_future()
        loop.call_later(0.01, done.set_result, None)
        await done
        assert fired.empty()
        timer.close()

    asyncio.run(main())
