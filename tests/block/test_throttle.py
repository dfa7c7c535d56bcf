# SPDX-License-Identifier: Apache-2.0
"""`throttle` nodes and their groups, with time in the test's hands."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, options, run
from vhostblk.block import throttle_group
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.iovec import IoVec
from vhostblk.engine.extents import Treatment
from vhostblk.schema.objects.throttle_group import ThrottleGroupProperties
from vhostblk.schema.options import object_options

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SECOND = 10**9


class Clock:
    """A clock that the test moves, and the timers that go by it."""

    def __init__(self) -> None:
        self.now = SECOND
        self.timers: list[FakeTimer] = []

    def make_timer(self, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(self, callback)
        self.timers.append(timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens meanwhile."""
        end = self.now + round(seconds * SECOND)
        await settle()
        while due := [timer for timer in self.timers if timer.when and timer.when <= end]:
            first = min(due, key=lambda timer: timer.when)
            self.now, first.when = first.when, 0
            first.callback()
            await settle()
        self.now = end


class FakeTimer:
    """One timer."""

    def __init__(self, clock: Clock, callback: Callable[[], object]) -> None:
        self._clock, self.callback = clock, callback
        #: 0: not set.
        self.when = 0

    def set(self, wait: int) -> None:
        assert wait > 0
        self.when = self._clock.now + wait

    def cancel(self) -> None:
        self.when = 0

    def close(self) -> None:
        self.cancel()


async def settle() -> None:
    """Let tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throttle_group, "make_timer", clock.make_timer)
    monkeypatch.setattr(throttle_group, "monotonic_ns", lambda: clock.now)
    return clock


def limits(**values: int) -> Any:
    given = {f"x-{name.replace('_', '-')}": value for name, value in values.items()}
    checked = object_options({"qom-type": "throttle-group", "id": "g", **given})
    assert isinstance(checked, ThrottleGroupProperties)
    return checked.initial_limits()


class Bench:
    """Throttled disks, a group, and requests that are counted when they are done."""

    def __init__(self, **values: int) -> None:
        self.graph = Graph()
        self.graph.throttle_groups.add("g", limits(**values))
        self.group = self.graph.throttle_groups.find("g")
        self.done: list[str] = []
        self.backends: dict[str, BlockBackend] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, name: str, **members: Any) -> BlockBackend:
        file = {"driver": "null-co", "size": 1 << 30, "read-zeroes": True}
        definition = {"driver": "throttle", "node_name": name, "file": file, **members}
        node = await self.graph.add(options(throttle_group="g", **definition))
        backend = self.backends[name] = BlockBackend(name, RW)
        backend.attach(self.graph, node)
        return backend

    def start(self, name: str, count: int = 1, kind: str = "read", size: int = 512) -> None:
        for _ in range(count):
            self._tasks.append(asyncio.create_task(self._request(name, kind, size)))

    async def _request(self, name: str, kind: str, size: int) -> None:
        backend = self.backends[name]
        requests: dict[str, Callable[[], Coroutine[object, object, None]]] = {
            "read": lambda: backend.preadv(0, IoVec.allocate(size)),
            "write": lambda: backend.pwritev(0, IoVec.allocate(size)),
            "zeroes": lambda: backend.pwrite_zeroes(0, size),
            "discard": lambda: backend.pdiscard(0, size),
            "flush": backend.flush,
        }
        async with backend.request():
            await requests[kind]()
        self.done.append(name)

    def take(self) -> str:
        """Return the names of the disks whose requests are done since the last look."""
        done, self.done = "".join(self.done), []
        return done

    async def close(self) -> None:
        for backend in self.backends.values():
            await backend.detach()
        await asyncio.gather(*self._tasks)
        await self.graph.close()
        self.graph.throttle_groups.close()


def bench(test: Callable[[Bench], Coroutine[Any, Any, None]], **values: int) -> None:
    async def main() -> None:
        made = Bench(**values)
        await test(made)
        await made.close()

    run(main)


def test_requests_go_at_the_rate(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("a")
        bench.start("a", 20)
        await clock.advance(0)
        assert bench.take() == "aa"  # a tenth of a second's worth, and the one over the brim
        await clock.advance(0.1)
        assert bench.take() == "a"
        await clock.advance(1)
        assert bench.take() == "a" * 10
        await clock.advance(10)
        assert bench.take() == "a" * 7

    bench(test, iops_total=10)


@pytest.mark.parametrize(
    ("limit", "kind", "waits"),
    [
        *(("bps_total", kind, True) for kind in ("read", "write", "zeroes", "discard")),
        *(("iops_total", kind, True) for kind in ("read", "write", "zeroes", "discard")),
        *(("bps_read", kind, kind == "read") for kind in ("read", "write", "zeroes", "discard")),
        *(("bps_write", kind, kind != "read") for kind in ("read", "write", "zeroes", "discard")),
        *(("iops_read", kind, kind == "read") for kind in ("read", "write", "discard")),
        *(("iops_write", kind, kind != "read") for kind in ("read", "write", "discard")),
        ("iops_total", "flush", False),
    ],
)
def test_what_a_limit_is_for(clock: Clock, limit: str, kind: str, waits: bool) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("a", discard="unmap")
        bench.start("a", 3, kind)
        await clock.advance(0)
        assert bench.take() == ("a" if waits else "aaa")

    bench(test, **{limit: 1})


def test_a_discard_that_the_node_ignores_does_not_count(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("a")
        bench.start("a", 3, "discard")
        await clock.advance(0)
        assert bench.take() == "aaa"

    bench(test, iops_total=1)


def test_long_requests_count_as_several(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("a")
        bench.start("a", 3, size=40960)
        await clock.advance(0.8)
        assert bench.take() == "a"
        await clock.advance(0.2)
        assert bench.take() == "a"

    bench(test, iops_total=10, iops_size=4096)


def test_members_take_turns(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        for name in "abc":
            await bench.add(name)
        bench.start("a", 2)
        await clock.advance(0)
        bench.start("a", 6)
        await settle()
        bench.start("b", 3)
        bench.start("c", 1)
        await clock.advance(0)
        assert bench.take() == "aa"
        await clock.advance(1)
        assert bench.take() == "abcababaaa"

    bench(test, iops_total=10)


@pytest.mark.parametrize("thought", [0.0, 0.003])
def test_a_member_is_not_short_changed_for_having_few_requests(
    clock: Clock, thought: float
) -> None:
    """Who is back in time for his turn, within 5 ms here, has it, as with QEMU."""

    async def test(bench: Bench) -> None:
        for name in "ab":
            await bench.add(name)
        bench.start("a", 20 + 64)
        await clock.advance(0)
        bench.take()
        bench.start("b")
        done = ""
        back: list[float] = []
        for step in range(1000):
            await clock.advance(0.001)
            finished = bench.take()
            done += finished
            bench.start("a", finished.count("a"))
            back += [step * 0.001 + thought] * finished.count("b")
            if back and back[0] <= step * 0.001:
                back.pop()
                bench.start("b")
        assert 195 <= len(done) <= 205
        assert abs(done.count("a") - done.count("b")) <= 2
        bench.group.set_limits(limits())

    bench(test, iops_total=200)


def test_reads_do_not_wait_for_writes(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("w")
        bench.start("w", 5, "write")
        await clock.advance(0)
        assert bench.take() == "w"
        bench.start("w", 5, "read")
        await clock.advance(0)
        assert bench.take() == "wwwww"

    bench(test, iops_write=1)


def test_other_limits_hold_at_once(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        await bench.add("a")
        bench.start("a", 25)
        await clock.advance(0)
        assert bench.take() == "a"
        bench.group.set_limits(limits(iops_total=100))
        await clock.advance(0)
        assert bench.take() == "a" * 11
        await clock.advance(0.05)
        assert bench.take() == "a" * 5
        bench.group.set_limits(limits())
        await clock.advance(0)
        assert bench.take() == "a" * 8

    bench(test, iops_total=1)


def test_a_drained_section_waits_for_nobody(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        a, _ = await bench.add("a"), await bench.add("b")
        bench.start("a", 12)
        await settle()
        bench.start("b", 2)
        await clock.advance(0)
        assert bench.take() == "aa"
        section = a.drained()
        entering = asyncio.create_task(section.__aenter__())
        await settle()
        waited = not entering.done()
        if waited:
            await clock.advance(60)  # so that the test fails, and does not hang
        await entering
        assert not waited
        async with AsyncExitStack() as stack:
            stack.push_async_exit(section)
            assert bench.take() == "a" * 10
            bench.start("a", 2)
            await clock.advance(0.5)
            assert bench.take() == ""
        await clock.advance(0)
        # What went unasked is accounted for: the others wait for it.
        await clock.advance(0.5)
        assert bench.take() == ""
        await clock.advance(0.3)
        assert bench.take() == "bab"

    bench(test, iops_total=10)


def test_a_node_goes_over_to_another_group(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        bench.graph.throttle_groups.add("h", limits())
        other = bench.graph.throttle_groups.find("h")
        await bench.add("a")
        bench.start("a", 5)
        await clock.advance(0)
        assert bench.take() == "a"
        file = {"driver": "null-co", "size": 1 << 30, "read-zeroes": True}
        definition = {"driver": "throttle", "node_name": "a", "file": file}
        with pytest.raises(BlockError, match="Throttle group 'x' does not exist"):
            await bench.graph.reopen([options(throttle_group="x", **definition)])
        assert bench.group.in_use
        await bench.graph.reopen([options(throttle_group="h", **definition)])
        assert (bench.group.in_use, other.in_use) == (False, True)
        bench.take()
        bench.start("a", 5)
        await clock.advance(0)
        assert bench.take() == "a" * 5

    bench(test, iops_total=1)


def test_a_group_is_in_use_while_it_has_nodes(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        seen = [bench.group.in_use]
        backend = await bench.add("a")
        seen.append(bench.group.in_use)
        await backend.detach()
        await bench.graph.remove("a")
        assert [*seen, bench.group.in_use] == [False, True, False]

    bench(test)


def test_others_may_do_what_the_budget_allows(clock: Clock) -> None:
    pytest.importorskip("vhostblk.engine._engine")

    async def test(bench: Bench) -> None:
        backend = await bench.add("a", discard="unmap")
        extents = backend.extent_map()
        assert extents is not None
        assert extents.budget is bench.group.budget
        # What is neither a read nor a write has to be asked to be accounted for.
        assert (extents.zero_range, extents.discard) == (False, Treatment.ASK)
        upper = {"driver": "throttle", "node_name": "u", "file": "a", "throttle_group": "g"}
        assert (await bench.graph.add(options(**upper))).extent_map() is None
        await bench.graph.remove("u")

    bench(test)


def test_throttled_nodes_may_be_stacked(clock: Clock) -> None:
    async def test(bench: Bench) -> None:
        bench.graph.throttle_groups.add("h", limits(iops_total=5))
        await bench.add("a")
        upper = {"driver": "throttle", "node_name": "u", "file": "a", "throttle_group": "h"}
        node = await bench.graph.add(options(**upper))
        bench.backends["u"] = BlockBackend("u", RW)
        await bench.backends["a"].detach()
        bench.backends["u"].attach(bench.graph, node)
        bench.start("u", 20)
        await clock.advance(2)
        assert bench.take() == "u" * 11

    bench(test, iops_total=10)
