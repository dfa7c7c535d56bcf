# SPDX-License-Identifier: Apache-2.0
"""Requests that an earlier process left in flight, and that were not taken again yet.

Whatever happens to the queue then, either they are done before its base is reported, or they stay
in the record.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tests.exports.support import BASE, FLUSH, WCE, Frontend, frontend, handed_over
from tests.virtio_blk.dirty_log import Log, pages
from tests.virtio_blk.support import UNSET, HandNode, Pending, header, pattern, turns
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import vring_config
from vhostblk.engine import load
from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    HEADER,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_STATE,
    Request,
)
from vhostblk.vhost_user.session import Session
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhostblk.vhost_user.rules import Answer
    from vhostblk.virtqueue.config import InflightDescription

pytestmark = pytest.mark.usefixtures("lane", "ring_kind")

IN, OUT = RequestType.IN, RequestType.OUT

#: The sectors of the requests left in flight, in the order in which they were taken.
SECTORS = (5, 3, 9)


class Left:
    """A front-end whose back-end has died with requests in flight, before it was reconnected."""

    def __init__(self, front: Frontend) -> None:
        self.front = front
        self.node: HandNode = front.node
        self.device = front.device
        self.area = self.device.make_inflight(2, 16)
        self.requests: list[Pending] = []

    async def die(self) -> None:
        """Let requests be taken, and the process die before any of them is done."""
        front, node = self.front, self.node
        await front.connect()
        self.give_area()
        await front.start()
        node.by_hand = True
        for sector in SECTORS:
            self.requests.append(front.request(OUT, sector, send=pattern(512, sector)))
        self.requests.append(front.request(IN, 1, want=8192))
        await front.until(lambda: len(node.waiting) == len(self.requests))
        memory = front.memory.content()
        record = os.pread(self.area.fd, self.area.mmap_size, 0)
        node.finish_all()
        await self.device.reset()
        front.memory.bring_back(memory)
        os.pwrite(self.area.fd, record, 0)
        node.data[:] = bytes(len(node.data))
        node.log.clear()

    def make_unknown(self) -> None:
        """Have the requests be of a type that nobody knows: they need no disk."""
        for request in self.requests:
            self.front.memory.write(request.header_address, header(99))

    def give_area(self, area: InflightDescription | None = None) -> None:
        """Send SET_INFLIGHT_FD."""
        described = area or self.area
        self.device.set_inflight(replace(described, fd=os.dup(described.fd)))

    async def come_back(self, *, enable: bool = False) -> None:
        """Start the queue again; the front-end knows only what the rings show."""
        front = self.front
        if not self.device.queues.memory.regions:
            await front.connect()
        self.give_area()
        await front.start(enable=enable)

    def nothing_done(self) -> bool:
        return self.node.log == [] and all(r.status == UNSET for r in self.requests)

    def check_done(self) -> None:
        """Check that all requests were done once, in order, and that the driver sees them used."""
        wanted = [f"write {512 * sector}+512" for sector in SECTORS]
        assert self.node.log == [*wanted, "read 512+8192"]
        assert {request.status for request in self.requests} == {Status.OK}
        for sector in SECTORS:
            assert self.node.data[512 * sector :][:512] == pattern(512, sector)
        used = [element.head for element in self.front.rings[0].poll()]
        assert sorted(used) == sorted(request.head for request in self.requests)

    async def stop(self) -> int:
        """Stop the vring; if that hangs, abandon it, and fail."""
        stopping = asyncio.create_task(self.device.stop_vring(0))
        ended, _ = await asyncio.wait({stopping}, timeout=20)
        if not ended:
            self.device.abandon()
        base = await stopping
        assert ended
        return base

    def close(self) -> None:
        os.close(self.area.fd)


@asynccontextmanager
async def left_behind() -> AsyncIterator[Left]:
    async with frontend() as front:
        front.block_backend.add_drain_listener(front.device)
        left = Left(front)
        try:
            await left.die()
            yield left
        finally:
            left.close()


@pytest.mark.parametrize("enable", [False, True])
def test_stop_finishes_them_before_it_tells_the_base(enable: bool) -> None:
    async def main() -> None:
        async with left_behind() as left:
            await left.come_back(enable=enable)
            base = await left.stop()
            left.check_done()
            assert base == left.front.rings[0].base
            await left.come_back(enable=True)
            assert await left.front.done(left.front.request(RequestType.FLUSH)) == Status.OK
            assert left.node.log[4:] == ["flush"]

    asyncio.run(main())


def test_stop_takes_no_new_requests() -> None:
    async def main() -> None:
        async with left_behind() as left:
            late = left.front.request(RequestType.FLUSH)
            await left.come_back()
            base = await left.stop()
            left.check_done()
            assert base == left.front.rings[0].base
            assert late.status == UNSET
            await left.come_back(enable=True)
            assert await left.front.done(late) == Status.OK

    asyncio.run(main())


def test_stop_waits_for_the_disk() -> None:
    async def main() -> None:
        async with left_behind() as left:
            left.node.by_hand = True
            await left.come_back()
            stopping = asyncio.create_task(left.device.stop_vring(0))
            await left.front.until(lambda: len(left.node.waiting) == 4)
            await turns()
            assert not stopping.done()
            left.node.finish_all()
            assert await stopping
            left.check_done()

    asyncio.run(main())


def test_stop_in_a_drained_section_waits_for_its_end() -> None:
    async def main() -> None:
        async with left_behind() as left:
            await left.come_back()
            async with left.front.block_backend.drained():
                stopping = asyncio.create_task(left.device.stop_vring(0))
                await turns()
                assert left.nothing_done()
                assert not stopping.done()
            base = await stopping
            left.check_done()
            assert base == left.front.rings[0].base

    asyncio.run(main())


def test_stop_in_a_drained_section_waits_for_those_that_need_no_disk() -> None:
    """The engine answers them by itself, so nothing else tells that they were taken."""

    async def main() -> None:
        async with left_behind() as left:
            left.make_unknown()
            async with left.front.block_backend.drained():
                await left.come_back(enable=True)
                stopping = asyncio.create_task(left.stop())
                await turns()
                assert not stopping.done()
            base = await stopping
            assert {request.status for request in left.requests} == {Status.UNSUPP}
            assert len(left.front.rings[0].poll()) == len(left.requests)
            assert base == left.front.rings[0].base
            assert left.node.log == []

    asyncio.run(main())


def test_drained_section_does_not_wait_for_them() -> None:
    async def main() -> None:
        async with left_behind() as left:
            async with left.front.block_backend.drained():
                await left.come_back(enable=True)
                async with left.front.block_backend.drained():
                    assert left.nothing_done()
            await left.front.until(lambda: all(r.status != UNSET for r in left.requests))
            await turns()
            left.check_done()

    asyncio.run(main())


def test_a_stop_that_is_abandoned_tells_no_base() -> None:
    """The export is removed during a drained section, which holds requests."""

    async def main() -> None:
        async with left_behind() as left:
            await left.come_back()
            async with left.front.block_backend.drained():
                stopping = asyncio.create_task(left.device.stop_vring(0))
                await turns()
                left.device.abandon()
                with pytest.raises(SetupError, match="queue 0: 4 requests of an earlier"):
                    await stopping
                await left.device.reset()
            assert left.nothing_done()
            await left.come_back()
            await left.device.stop_vring(0)
            left.check_done()

    asyncio.run(main())


def test_they_stay_in_the_record_of_a_front_end_that_leaves() -> None:
    async def main() -> None:
        async with left_behind() as left:
            await left.come_back()
            await left.device.reset()
            assert left.nothing_done()
            async with left.front.block_backend.drained():
                await left.come_back(enable=True)
                await left.device.reset()
            assert left.nothing_done()
            await left.come_back()
            await left.device.stop_vring(0)
            left.check_done()

    asyncio.run(main())


def test_a_second_death_before_they_were_taken() -> None:
    async def main() -> None:
        async with left_behind() as left:
            for _ in range(2):
                await left.come_back()
                memory = left.front.memory.content()
                record = os.pread(left.area.fd, left.area.mmap_size, 0)
                await left.device.stop_vring(0)
                await left.device.reset()
                left.front.memory.bring_back(memory)
                os.pwrite(left.area.fd, record, 0)
                left.node.log.clear()
            await left.come_back()
            await left.device.stop_vring(0)
            left.check_done()

    asyncio.run(main())


def test_lanes_change_before_they_were_taken() -> None:
    async def main() -> None:
        async with left_behind() as left:
            await left.come_back()
            other = left.device.make_inflight(2, 16)
            left.give_area(other)  # used only by queues that start from now on
            os.close(other.fd)
            for lane in (Lane.PYTHON, Lane.EXPRESS, Lane.PYTHON):
                if lane is Lane.PYTHON or load() is not None:
                    await left.device.switch_lane(lane)
                assert left.nothing_done()
            base = await left.stop()
            left.check_done()
            assert base == left.front.rings[0].base

    asyncio.run(main())


def test_memory_changes_before_they_were_taken() -> None:
    async def main() -> None:
        async with left_behind() as left:
            await left.come_back()
            await left.device.set_memory(handed_over(left.front.memory.describe()))
            assert left.nothing_done()
            await left.device.stop_vring(0)
            left.check_done()

    asyncio.run(main())


@pytest.mark.skipif(load() is None, reason="needs the compiled engine")
def test_what_they_write_is_in_the_dirty_log() -> None:
    async def main() -> None:
        log = Log(1 << 20)
        async with left_behind() as left:
            logging = left.device.dirty_logging
            assert logging is not None
            await left.come_back()
            await logging.set_log(log.describe())
            await logging.set_logging(True)
            log.take()
            await left.device.stop_vring(0)
            left.check_done()
            noted = log.take()
            for request in left.requests:
                assert pages(request._status, 1) <= noted
            assert pages(left.requests[-1].address, 8192) <= noted
        log.close()

    asyncio.run(main())


def test_write_cache_is_as_the_driver_chose() -> None:
    """Requests in flight under write-through are repeated under write-through."""

    async def main() -> None:
        async with left_behind() as left:
            await left.front.connect(BASE | FLUSH | WCE)
            left.device.set_config(32, b"\0")
            await left.come_back()
            await left.device.stop_vring(0)
            assert left.node.log[0] == f"write {512 * SECTORS[0]}+512 fua"

    asyncio.run(main())


@pytest.mark.parametrize(
    "way", [Request.RESET_DEVICE, Request.SET_STATUS, Request.SET_FEATURES, Request.SET_VRING_KICK]
)
def test_every_message_that_stops_a_vring_finishes_them(way: Request) -> None:
    async def main() -> None:
        async with left_behind() as left:
            session = Session(left.device)

            async def tell(request: Request, payload: bytes = b"", *fds: int) -> Answer:
                files = FdList([os.dup(fd) for fd in fds])
                answer = await session.handle(Message(request, VERSION, payload, files))
                assert answer.failure is None
                return answer

            front, ring = left.front, left.front.rings[0]
            features = BASE | FLUSH | current_kind().features | F_PROTOCOL_FEATURES
            await tell(Request.SET_FEATURES, U64.pack(features))
            await left.device.set_memory(handed_over(front.memory.describe()))
            left.give_area()
            config = vring_config(ring, front.memory)
            addresses = (config.desc_addr, config.used_addr, config.avail_addr)
            await tell(Request.SET_VRING_NUM, VRING_STATE.pack(0, ring.size))
            await tell(Request.SET_VRING_ADDR, VRING_ADDR.pack(0, 0, *addresses, 0))
            await tell(Request.SET_VRING_BASE, VRING_STATE.pack(0, config.next_avail))
            await tell(Request.SET_VRING_KICK, U64.pack(0), ring.kick_fd)
            match way:
                case Request.RESET_DEVICE:
                    await tell(way)
                case Request.SET_STATUS:
                    await tell(way, U64.pack(0))
                case Request.SET_FEATURES:
                    await tell(way, U64.pack(features | WCE))
                case _:
                    await tell(way, U64.pack(0), ring.kick_fd)
            left.check_done()
            answer = await tell(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
            assert VRING_STATE.unpack(answer.reply[HEADER.size :]) == (0, ring.base)
            session.close()

    asyncio.run(main())
