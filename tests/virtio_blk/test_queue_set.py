# SPDX-License-Identifier: Apache-2.0
"""A queue set without any transport: the test says where memory and rings are."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tests.frontend.memory import Memory
from tests.frontend.ring import Segment
from tests.virtio_blk.support import (
    MIB,
    UNSET,
    HandNode,
    Pending,
    attach,
    eventfds,
    header,
    pattern,
    turns,
)
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.block.errors import BlockError
from vhostblk.engine import load
from vhostblk.engine.iothreads import Iothreads
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtio_blk.queue_maker import DiskOptions
from vhostblk.virtio_blk.queue_set import QueueSet, Wires
from vhostblk.virtqueue.errors import SetupError
from vhostblk.virtqueue.inflight_area import InflightArea, make_inflight
from vhostblk.virtqueue.ring import inflight_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vhostblk.virtqueue.memory import GuestMemory

pytestmark = pytest.mark.usefixtures("lane", "ring_kind")

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
FEATURES = Feature.VERSION_1.mask | Feature.FLUSH.mask | Feature.CONFIG_WCE.mask


class Bench:
    """A set, and the driver of two queues."""

    def __init__(self, **attached: Any) -> None:
        self.node = HandNode()
        self.backend = attach(self.node, **attached)
        self.memory = Memory(((0, 256 * 1024), (1 << 32, 2 * MIB)))
        self.rings = [current_kind().driver(self.memory, 16) for _ in range(2)]
        self.iothreads = Iothreads()
        log = RateLimitedLogger(logging.getLogger("tests.virtio_blk"), "test: ")
        disk = DiskOptions("e", b"serial", writable=True, logical_block_size=512)
        self.queues = QueueSet(disk, self.backend, self.iothreads, log)
        self.err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for ring in self.rings:
            os.set_blocking(ring.call_fd, False)

    async def prepare(self) -> None:
        """Do what a transport does before queues start."""
        await self.queues.prepare()
        self.queues.set_features(FEATURES | current_kind().features)
        await self.queues.move(map_memory(self.memory))
        self.iothreads.start(())  # it has event descriptors of its own

    async def start(self, index: int = 0, *, enable: bool = True, **wires: Any) -> None:
        """Start a queue."""
        ring = self.rings[index]
        config = vring_config(ring, self.memory, index)
        connected = Wires(call_fd=ring.call_fd, err_fd=self.err_fd, **wires)
        await self.queues.start(config, os.dup(ring.kick_fd), connected)
        if enable:
            self.queues.set_enabled(index, True)

    def request(
        self, kind: int, sector: int = 0, *, send: bytes = b"", want: int = 0, index: int = 0
    ) -> Pending:
        """Make a request available, and kick."""
        memory, ring = self.memory, self.rings[index]
        place, status = memory.allocate(16, region=1), memory.allocate(1, 1, region=1)
        memory.write(place, header(kind, sector))
        memory.write(status, bytes([UNSET]))
        data = memory.allocate(len(send) + want + 1, region=1)
        memory.write(data, send)
        chain = [Segment(place, 16), Segment(data, len(send)), Segment(data, want, True)]
        head = ring.add([s for s in chain if s.length] + [Segment(status, 1, True)])
        ring.kick(force=True)
        return Pending(memory, head, data, len(send) + want, status, place)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until something holds."""
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)

    async def done(self, request: Pending) -> int:
        """Wait for a request's status."""
        await self.until(lambda: request.status != UNSET)
        return request.status

    async def serves(self, index: int = 0) -> None:
        """Check that a queue takes, does and announces a request."""
        ring = self.rings[index]
        ring.poll()
        _clear(ring.call_fd)
        assert await self.done(self.request(FLUSH, index=index)) == Status.OK
        await self.until(lambda: _clear(ring.call_fd))
        assert len(ring.poll()) == 1

    def break_ring(self) -> None:
        """Make a chain available that there is not."""
        self.rings[0].poll()
        self.rings[0].make_available(77)
        self.rings[0].kick(force=True)

    def close(self) -> None:
        self.iothreads.close()
        os.close(self.err_fd)
        for ring in self.rings:
            ring.close()
        self.memory.close()


def _clear(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@asynccontextmanager
async def bench(**attached: Any) -> AsyncIterator[Bench]:
    """Make a set that is ready; reset it at the end."""
    bench = Bench(**attached)
    try:
        await bench.prepare()
        yield bench
        bench.node.finish_all()
        await bench.queues.reset()
        assert bench.queues.running == {}
    finally:
        bench.close()


def test_both_queues_serve() -> None:
    async def run() -> None:
        async with bench() as b:
            for index in range(2):
                await b.start(index)
            for index in range(2):
                await b.serves(index)
                assert b.queues.config(index).index == index
            assert sorted(b.queues.running) == [0, 1]
            assert not b.queues.broken

    asyncio.run(run())


def test_disabled_queue_waits() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start(enable=False)
            request = b.request(FLUSH)
            await turns()
            assert request.status == UNSET
            b.queues.set_enabled(0, True)
            assert await b.done(request) == Status.OK
            b.queues.set_enabled(0, False)
            request = b.request(FLUSH)
            await turns()
            assert request.status == UNSET
            assert b.queues.enabled == set()
            b.queues.set_enabled(0, True)
            assert await b.done(request) == Status.OK

    asyncio.run(run())


def test_queue_is_enabled_before_it_starts_and_after_it_stopped() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queues.set_enabled(0, True)
            for _ in range(2):
                await b.start(enable=False)
                await b.serves()
                await b.queues.stop(0)

    asyncio.run(run())


def test_stop_finishes_requests_and_keeps_statistics() -> None:
    async def run() -> None:
        async with bench() as b:
            assert b.queues.statistics() == {}
            for turn in (1, 2):
                await b.start()
                b.node.by_hand = True
                request = b.request(FLUSH)
                await b.until(lambda: b.node.waiting)
                stopping = asyncio.create_task(b.queues.stop(0))
                await turns()
                assert not stopping.done()
                b.node.finish_all()
                base = await stopping
                assert request.status == Status.OK
                b.rings[0].poll()
                assert base == b.rings[0].base
                assert b.queues.statistics()[0]["flush"]["operations"] == turn

    asyncio.run(run())


def test_statistics_of_running_and_stopped_queues() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start(0)
            await b.start(1)
            await b.serves(0)
            await b.queues.stop(0)
            await b.serves(1)
            for described in b.queues.statistics().values():
                assert described["flush"]["operations"] == 1
            assert sorted(b.queues.statistics()) == [0, 1]

    asyncio.run(run())


def test_queue_that_can_not_start_leaves_nothing() -> None:
    async def run() -> None:
        async with bench() as b:
            before = eventfds()
            ring = b.rings[0]
            config = replace(vring_config(ring, b.memory), desc_addr=16)
            with pytest.raises(SetupError):
                await b.queues.start(config, os.dup(ring.kick_fd), Wires())
            assert eventfds() == before
            assert b.queues.running == {}
            await b.start()
            await b.serves()

    asyncio.run(run())


def test_image_is_taken_with_the_first_queue_and_left_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with bench(allow_inactive=True) as b:
            taken: list[bool] = []

            async def set_active(*, active: bool) -> None:
                taken.append(active)

            monkeypatch.setattr(b.backend, "set_active", set_active)
            for index in range(2):
                await b.start(index)
                assert set(taken) == {True}
                assert not b.backend.allow_inactive
            await b.queues.stop(0)
            assert set(taken) == {True}
            await b.queues.stop(1)
            assert taken[-1] is False
            assert b.backend.allow_inactive

    asyncio.run(run())


def test_queue_does_not_start_where_others_have_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with bench(allow_inactive=True) as b:

            async def set_active(*, active: bool) -> None:
                if active:
                    raise BlockError("the image is locked")

            monkeypatch.setattr(b.backend, "set_active", set_active)
            before = eventfds()
            with pytest.raises(SetupError, match=r"^the image is locked$"):
                await b.start()
            assert eventfds() == before
            assert b.queues.running == {}

    asyncio.run(run())


def test_drained_section_holds_queues_new_ones_too() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start(0)
            b.queues.drained_begin()
            await b.start(1)
            requests = [b.request(FLUSH, index=index) for index in range(2)]
            await turns()
            assert {request.status for request in requests} == {UNSET}
            b.queues.drained_end()
            for request in requests:
                assert await b.done(request) == Status.OK

    asyncio.run(run())


def test_memory_moves_with_nothing_in_flight() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            b.node.by_hand = True
            former = b.queues.memory
            request = b.request(IN, want=512)
            await b.until(lambda: b.node.waiting)
            moving = asyncio.create_task(b.queues.move(map_memory(b.memory)))
            await turns()
            assert not moving.done()
            assert b.queues.memory is former
            b.node.finish_all()
            await moving
            assert request.status == Status.OK
            assert b.queues.memory is not former
            await b.serves()

    asyncio.run(run())


def test_all_queues_stay_where_one_can_not_move() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start(0)
            await b.start(1)
            former = b.queues.memory
            refusing: Any = b.queues.running[1]
            move = refusing.move

            def refuse(memory: GuestMemory) -> None:
                if memory is not former:
                    raise SetupError("not there")
                move(memory)

            refusing.move = refuse
            with pytest.raises(SetupError, match="not there"):
                await b.queues.move(map_memory(b.memory))
            assert b.queues.memory is former
            await b.serves(0)
            await b.serves(1)

    asyncio.run(run())


def test_quiet_section_holds_queues() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            async with b.queues.quiet() as queues:
                assert queues == list(b.queues.running.values())
                request = b.request(FLUSH)
                starting = asyncio.create_task(b.start(1))
                await turns()
                assert request.status == UNSET
                assert not starting.done()
            await starting
            assert await b.done(request) == Status.OK
            await b.serves(1)

    asyncio.run(run())


def test_write_cache_changes_while_queues_run() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            for enabled in (False, True):
                b.queues.choose_write_cache(enabled)
                assert b.queues.chosen_write_cache is enabled
                await b.done(b.request(OUT, send=bytes(512)))
            assert b.node.log == ["write 0+512 fua", "write 0+512"]

    asyncio.run(run())


def test_size_changes_while_queues_run() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            end = MIB // 512
            assert await b.done(b.request(OUT, end, send=bytes(512))) == Status.IOERR
            b.node.data += bytes(512)
            b.queues.refresh()
            assert await b.done(b.request(OUT, end, send=bytes(512))) == Status.OK

    asyncio.run(run())


def _other(lane: Lane) -> Lane:
    return Lane.EXPRESS if lane is Lane.PYTHON else Lane.PYTHON


@pytest.mark.skipif(load() is None, reason="needs the compiled engine")
def test_wires_stay_when_the_lane_changes(lane: Lane) -> None:
    async def run() -> None:
        bytes_for = inflight_bytes(packed=current_kind().packed)
        area = make_inflight(2, 16, bytes_for)
        async with bench() as b:
            record = InflightArea(area).part(0, bytes_for)
            b.node.by_hand = True
            await b.start(record=record)
            request = b.request(OUT, 1, send=pattern(512))
            await b.until(lambda: b.node.waiting)
            switching = asyncio.create_task(b.queues.switch_lane(_other(lane)))
            await turns()
            assert not switching.done()
            b.node.finish_all()
            await switching
            assert request.status == Status.OK
            await b.serves()
            queue: Any = b.queues.running[0]
            assert queue._ring.inflight is not None
            await b.start(1)  # on the other lane, too
            assert type(b.queues.running[1]) is type(queue)
            await b.serves(1)
            assert b.queues.statistics()[0]["write"]["operations"] == 1
            b.break_ring()
            await b.until(lambda: b.queues.broken)
            await b.until(lambda: _clear(b.err_fd))
        os.close(area.fd)

    asyncio.run(run())


@pytest.mark.skipif(load() is None, reason="needs the compiled engine")
def test_queue_stays_where_the_other_lane_has_no_room(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            make, failing = b.queues._make, [True]

            def refuse(*arguments: Any) -> Any:
                if failing.pop() if failing else False:
                    raise SetupError("no memory for a queue")
                return make(*arguments)

            monkeypatch.setattr(b.queues, "_make", refuse)
            with pytest.raises(SetupError, match="no memory for a queue"):
                await b.queues.switch_lane(_other(lane))
            await b.serves()
            await b.start(1)
            assert type(b.queues.running[1]) is type(b.queues.running[0])

    asyncio.run(run())


def test_descriptors_are_exchanged_while_a_queue_runs() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            for index in range(2):  # the second one does not run
                b.queues.set_call(index, other)
                b.queues.set_err(index, other)
            _clear(other)
            assert await b.done(b.request(FLUSH)) == Status.OK
            await b.until(lambda: _clear(other))
            b.queues.set_call(0, None)
            b.break_ring()
            await b.until(lambda: _clear(other))
            assert not _clear(b.err_fd)
            await b.queues.stop(0)
            os.close(other)

    asyncio.run(run())


def test_requests_of_an_earlier_process_are_done_before_a_stop() -> None:
    async def run() -> None:
        bytes_for = inflight_bytes(packed=current_kind().packed)
        area = make_inflight(2, 16, bytes_for)
        async with bench() as b:
            await _die(b, InflightArea(area).part(0, bytes_for), area.fd)
            await b.start(enable=False, record=InflightArea(area).part(0, bytes_for))
            stopping = asyncio.create_task(b.queues.stop(0))
            await turns()
            base = await stopping
            assert b.node.log == ["write 1536+512"]
            assert len(b.rings[0].poll()) == 1
            assert base == b.rings[0].base
        os.close(area.fd)

    asyncio.run(run())


def test_requests_of_an_earlier_process_may_be_abandoned() -> None:
    async def run() -> None:
        bytes_for = inflight_bytes(packed=current_kind().packed)
        area = make_inflight(2, 16, bytes_for)
        async with bench() as b:
            await _die(b, InflightArea(area).part(0, bytes_for), area.fd)
            b.queues.drained_begin()
            await b.start(record=InflightArea(area).part(0, bytes_for))
            stopping = asyncio.create_task(b.queues.stop(0))
            await turns()
            assert not stopping.done()
            b.queues.abandon()
            with pytest.raises(SetupError, match=r"^queue 0: 1 requests of an earlier process are"):
                await stopping
            await b.queues.reset()
            b.queues.drained_end()
            assert b.node.log == []
        os.close(area.fd)

    asyncio.run(run())


async def _die(b: Bench, record: Any, fd: int) -> None:
    """Leave one request in flight, as a process does that dies."""
    b.node.by_hand = True
    await b.start(record=record)
    b.request(OUT, 3, send=pattern(512))
    await b.until(lambda: b.node.waiting)
    memory, noted = b.memory.content(), os.pread(fd, os.fstat(fd).st_size, 0)
    b.node.finish_all()
    await b.queues.reset()
    b.memory.bring_back(memory)
    os.pwrite(fd, noted, 0)
    b.node.log.clear()
    await b.prepare()


def test_next_driver_finds_nothing_of_the_former_one() -> None:
    async def run() -> None:
        async with bench() as b:
            await b.start()
            b.queues.choose_write_cache(False)
            request = b.request(FLUSH)
            await b.until(lambda: request.status != UNSET)
            await b.queues.reset()
            assert b.queues.features == 0
            assert b.queues.enabled == set()
            assert b.queues.chosen_write_cache is None
            assert b.backend.enable_write_cache
            assert len(b.queues.memory.regions) == 0
            await b.prepare()
            await b.start(enable=False)
            b.rings[0].poll()
            waiting = b.request(FLUSH)
            await turns()
            assert waiting.status == UNSET

    asyncio.run(run())
