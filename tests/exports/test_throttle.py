# SPDX-License-Identifier: Apache-2.0
"""Exports of throttled nodes, on either lane: requests that wait, and what lets them go."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.block.support import options
from tests.exports.support import Frontend, frontend
from tests.virtio_blk.support import UNSET, Pending, turns
from vhostblk.block.graph.graph import Graph
from vhostblk.schema.throttle import UNLIMITED, ThrottleLimits, changed_limits
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vhostblk.block.throttle_group import ThrottleGroup

pytestmark = pytest.mark.usefixtures("lane")

#: Requests that go at once with this limit: a few bytes over the brim take minutes to leak.
SLOW = changed_limits(UNLIMITED, ThrottleLimits(bps_total=1))


class Disks:
    """Front-ends on throttled disks of one group."""

    def __init__(self, graph: Graph, fronts: list[Frontend]) -> None:
        self.graph = graph
        self.fronts = fronts

    @property
    def group(self) -> ThrottleGroup:
        return self.graph.throttle_groups.find("g")

    def read(self, disk: int = 0) -> Pending:
        return self.fronts[disk].request(RequestType.IN, want=512)

    async def done(self, *requests: Pending) -> None:
        for request in requests:
            assert await self.fronts[0].done(request) == Status.OK

    async def start_waiting(self, disk: int = 0, count: int = 3) -> list[Pending]:
        """Make requests that wait, after one that need not."""
        await self.done(self.read(disk))
        waiting = [self.read(disk) for _ in range(count)]
        await self.fronts[0].until(lambda: len(self.waiting(disk)) == count)
        assert all(request.status == UNSET for request in waiting)
        return waiting

    async def start_waiting_then_lift(self) -> list[Pending]:
        """Have requests wait, and let them go by lifting the limit."""
        waiting = await self.start_waiting()
        self.group.set_limits(UNLIMITED)
        return waiting

    def upcalls(self) -> object:
        """Count the first disk's requests that the engine has handed up."""
        return self.fronts[0].device.statistics()[0]["upcalls"]

    def waiting(self, disk: int) -> list[object]:
        node = self.graph.find(f"disk{disk}")
        return list(node._member.waiting[0])  # type: ignore[attr-defined]


@asynccontextmanager
async def disks(count: int = 1, limits: ThrottleLimits = SLOW) -> AsyncIterator[Disks]:
    graph = Graph()
    graph.throttle_groups.add("g", limits)
    async with AsyncExitStack() as stack:
        fronts = []
        for number in range(count):
            file = {"driver": "null-co", "size": 1 << 20, "read-zeroes": True}
            definition = {"driver": "throttle", "node_name": f"disk{number}", "file": file}
            node = await graph.add(options(throttle_group="g", **definition))
            front = await stack.enter_async_context(frontend(node))
            await front.connect()
            await front.start()
            front.block_backend.add_drain_listener(front.device)
            fronts.append(front)
        yield Disks(graph, fronts)
    for number in range(count):
        await fronts[number].block_backend.detach()
    await graph.close()
    graph.throttle_groups.close()


def run(test: Callable[[Disks], Awaitable[None]], count: int = 1) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), disks(count) as made:
            await test(made)

    asyncio.run(main())


def test_requests_wait_and_go_when_the_limit_is_lifted() -> None:
    async def test(made: Disks) -> None:
        waiting = await made.start_waiting_then_lift()
        await made.done(*waiting, made.read())

    run(test)


def test_a_drained_section_does_not_wait_for_the_limit() -> None:
    async def test(made: Disks) -> None:
        waiting = await made.start_waiting()
        async with made.fronts[0].block_backend.drained():
            assert all(request.status == Status.OK for request in waiting)
            during = made.read()
            await turns()
            assert during.status == UNSET
        await made.fronts[0].until(lambda: made.waiting(0))
        made.group.set_limits(UNLIMITED)
        await made.done(during)

    run(test)


def test_a_queue_stops_without_waiting_for_the_limit() -> None:
    async def test(made: Disks) -> None:
        waiting = await made.start_waiting()
        await made.fronts[0].device.stop_vring(0)
        assert all(request.status == Status.OK for request in waiting)

    run(test)


def test_the_memory_table_changes_without_waiting_for_the_limit() -> None:
    async def test(made: Disks) -> None:
        waiting = await made.start_waiting()
        await made.fronts[0].connect()
        assert all(request.status == Status.OK for request in waiting)

    run(test)


def test_the_engine_goes_on_when_nobody_waits_any_more() -> None:
    async def test(made: Disks) -> None:
        await made.done(*await made.start_waiting_then_lift())
        ring = made.fronts[0].rings[0]
        ring.poll()
        made.group.set_limits(changed_limits(UNLIMITED, ThrottleLimits(iops_total=10**6)))
        before = made.upcalls()
        for _ in range(4):
            await made.done(made.read())
        assert made.upcalls() == before

    run(test)


def test_disks_of_a_group_wait_for_each_other() -> None:
    async def test(made: Disks) -> None:
        waiting = await made.start_waiting(0)
        waiting.append(made.read(1))
        await made.fronts[1].until(lambda: made.waiting(1))
        # One leaves; the other's requests wait still.
        await made.fronts[0].device.stop_vring(0)
        assert [request.status for request in waiting] == [Status.OK] * 3 + [UNSET]
        made.group.set_limits(UNLIMITED)
        await made.done(*waiting)

    run(test, 2)


def test_requests_go_one_by_one_as_the_bucket_leaks() -> None:
    async def test(made: Disks) -> None:
        limits = changed_limits(UNLIMITED, ThrottleLimits(iops_total=1000))
        made.group.set_limits(limits)
        ring = made.fronts[0].rings[0]

        def all_used() -> bool:
            ring.poll()
            return not ring.in_flight

        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(60):
            await made.done(*(made.read() for _ in range(5)))
            await made.fronts[0].until(all_used)
        # A tenth of a second's worth goes at once; it can't have been faster than the limit.
        assert loop.time() - begin >= (60 * 5 - 102) / 1000

    run(test)
