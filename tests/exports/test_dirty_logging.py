# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a migration: what changes in guest memory is in it, in both lanes, and no more.

The front-end looks at its memory before and after a burst of requests. Pages that differ must be in
the log; pages in the log must be those that the burst could write.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.exports.support import BASE, FLUSH, Frontend, handed_over
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import Segment
from tests.virtio_blk.dirty_log import Log, changed, pages, snapshot
from tests.virtio_blk.support import MIB, HandNode, header, pattern, turns
from vhostblk.engine import load
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.config import LogDescription
from vhostblk.virtqueue.dirty_log import LOG_PAGE
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [
    pytest.mark.usefixtures("lane"),
    pytest.mark.skipif(load() is None, reason="needs the compiled engine"),
]

IN, OUT, GET_ID = RequestType.IN, RequestType.OUT, RequestType.GET_ID

#: Memory ends here.
END = (1 << 32) + 2 * MIB
#: A log for memory up to there.
LOG_BYTES = END // LOG_PAGE // 8


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(LOG_BYTES)
    yield log
    log.close()


@asynccontextmanager
async def logging_frontend(log: Log, *, event_idx: bool = False) -> AsyncIterator[Frontend]:
    """A front-end whose queue runs and notes everything."""
    node = HandNode()
    node.data[:] = pattern(len(node.data))
    front = Frontend(node)
    try:
        if event_idx:
            front.rings[0].event_idx = True
        await front.connect(BASE | FLUSH | (Feature.RING_EVENT_IDX.mask if event_idx else 0))
        await front.start()
        await switch_on(front, log)
        yield front
        node.finish_all()
        await front.device.reset()
    finally:
        front.close()


async def switch_on(front: Frontend, log: Log) -> None:
    """Switch logging on as QEMU does."""
    logging = front.device.dirty_logging
    assert logging is not None
    await logging.set_log(log.describe())
    await logging.set_logging(True)
    await front.device.set_vring_log(0, front.rings[0].used_addr)


def used_pages(front: Frontend) -> set[int]:
    ring = front.rings[0]
    if isinstance(ring, PackedDriverRing):
        return pages(ring.desc_addr, 16 * ring.size) | pages(ring.used_addr, 4)
    return pages(ring.used_addr, 6 + 8 * ring.size)


def add(front: Frontend, kind: int, segments: list[Segment], sector: int = 0) -> set[int]:
    """Make a request of these data segments available; return the pages that it may write."""
    head, status = front.memory.allocate(16, region=1), front.memory.allocate(1, 1, region=1)
    front.memory.write(head, header(kind, sector))
    front.rings[0].add([Segment(head, 16), *segments, Segment(status, 1, True)])
    may: set[int] = pages(status, 1)
    for segment in segments:
        if segment.writable:
            may |= pages(segment.addr, segment.length)
    return may


def random_requests(front: Frontend, rng: np.random.Generator) -> tuple[int, set[int]]:
    """Make requests of all sorts available; return how many, and the pages that they may write."""
    may: set[int] = set()
    count = int(rng.integers(1, 4))
    for _ in range(count):
        kind = int(rng.choice([IN, IN, OUT, GET_ID, 99]))
        segments = []
        for _ in range(int(rng.integers(1, 4))):
            size = int(512 * rng.integers(1, 24))
            addr = (1 << 32) + MIB + int(rng.integers(0, MIB - size))
            segments.append(Segment(addr, size, kind != OUT))
        # Now and then past the end of the disk: refused.
        may |= add(front, kind, segments, int(rng.choice([0, 1, 100, 1 << 40])))
    return count, may


async def run(front: Frontend, count: int) -> None:
    """Kick, and wait until all requests have been answered."""
    ring, done = front.rings[0], 0
    ring.kick(force=True)

    def are_answered() -> bool:
        nonlocal done
        done += len(ring.poll())
        return done == count

    await front.until(are_answered)


@asynccontextmanager
async def quiet(front: Frontend) -> AsyncIterator[None]:
    """Keep the device from writing anything."""
    front.device.drained_begin()
    await front.device.queues.running[0].wait_idle()
    yield
    front.device.drained_end()


@pytest.mark.usefixtures("ring_kind")
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_changes_is_noted_and_no_more(log: Log, seed: int, event_idx: bool) -> None:
    async def main() -> None:
        rng = np.random.default_rng(seed)
        async with logging_frontend(log, event_idx=event_idx) as front:
            async with quiet(front):
                assert log.take() == used_pages(front)
            for _ in range(6):
                async with quiet(front):
                    count, may = random_requests(front, rng)
                    front.rings[0].publish()
                    before = snapshot(front.memory)
                    log.take()
                await run(front, count)
                async with quiet(front):
                    noted = log.take()
                    assert changed(before, snapshot(front.memory)) <= noted
                    assert noted <= may | used_pages(front)

    asyncio.run(main())


def test_data_of_a_read_is_noted_page_by_page(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            log.take()
            at = (1 << 32) + MIB + 4000
            may = add(front, IN, [Segment(at, 512, True)])
            add(front, OUT, [Segment((1 << 32) + MIB + 65536, 512)])
            await run(front, 2)
            noted = log.take()
            assert {at // LOG_PAGE, at // LOG_PAGE + 1} <= noted
            assert (at + 65536) // LOG_PAGE not in noted
            assert may <= noted

    asyncio.run(main())


def test_read_that_fails_may_have_written(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            log.take()
            front.node.error = OSError(5, "no")
            may = add(front, IN, [Segment((1 << 32) + MIB, 8192, True)])
            await run(front, 1)
            async with quiet(front):
                assert log.take() == may | used_pages(front)

    asyncio.run(main())


def test_identity_is_noted_as_far_as_it_goes(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            log.take()
            at = (1 << 32) + MIB
            segments = [(at, 8192), (at + 16384, 10), (at + 32768, 4000), (at + 65536, 512)]
            add(front, GET_ID, [Segment(*segments[0], True)])
            await run(front, 1)
            assert pages(*segments[0]) & log.take() == {at // LOG_PAGE}
            add(front, GET_ID, [Segment(*segment, True) for segment in segments[1:]])
            await run(front, 1)
            noted = log.take()
            assert pages(at + 16384, 10) | pages(at + 32768, 10) <= noted
            assert not pages(*segments[3]) & noted

    asyncio.run(main())


def test_switched_on_and_off_with_requests_in_flight(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            assert front.device.dirty_logging is not None
            log.take()
            front.node.by_hand = True
            add(front, IN, [Segment((1 << 32) + MIB, 4096, True)])
            front.rings[0].kick(force=True)
            await front.until(lambda: front.node.waiting)
            off = asyncio.create_task(front.device.dirty_logging.set_logging(False))
            await asyncio.sleep(0)
            assert not off.done()
            front.node.finish()
            await off
            assert ((1 << 32) + MIB) // LOG_PAGE in log.take()
            await front.device.set_vring_log(0, None)
            log.take()
            front.node.by_hand = False
            front.rings[0].poll()
            add(front, IN, [Segment((1 << 32) + MIB, 4096, True)])
            await run(front, 1)
            assert log.take() == set()

    asyncio.run(main())


@pytest.mark.usefixtures("ring_kind")
def test_data_is_noted_where_the_used_ring_is_not(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            await front.device.set_vring_log(0, None)
            async with quiet(front):
                log.take()
                may = add(front, IN, [Segment((1 << 32) + MIB, 8192, True)])
            await run(front, 1)
            async with quiet(front):
                assert log.take() == may

    asyncio.run(main())


def test_all_queues_are_noted(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            logging = front.device.dirty_logging
            assert logging is not None
            await front.start(1)
            for enabled in (False, True):
                await logging.set_logging(enabled)
                log.take()
                for index in (0, 1):
                    request = front.request(IN, want=4096, index=index, align=4096)
                    await front.done(request)
                    noted = log.take()
                    assert (request.address // LOG_PAGE in noted) is enabled

    asyncio.run(main())


@pytest.mark.usefixtures("ring_kind")
def test_another_log_while_a_request_is_in_flight(log: Log) -> None:
    """All of the request is marked in the former log, and nothing later is."""

    async def main() -> None:
        other = Log(LOG_BYTES)
        async with logging_frontend(log) as front:
            logging = front.device.dirty_logging
            assert logging is not None
            front.node.by_hand = True
            may = add(front, IN, [Segment((1 << 32) + MIB, 8192, True)])
            front.rings[0].kick(force=True)
            await front.until(lambda: front.node.waiting)
            log.take()
            exchange = asyncio.create_task(logging.set_log(other.describe()))
            await turns()
            assert not exchange.done()
            assert other.take() == set()
            front.node.finish()
            await exchange
            assert may <= log.take()
            front.node.by_hand = False
            front.rings[0].poll()
            async with quiet(front):
                assert used_pages(front) <= other.take()
                may = add(front, IN, [Segment((1 << 32) + MIB + 65536, 8192, True)])
            await run(front, 1)
            async with quiet(front):
                noted = other.take()
            assert may <= noted <= may | used_pages(front)
            assert log.take() == set()
        other.close()

    asyncio.run(main())


@pytest.mark.usefixtures("ring_kind")
def test_logs_are_exchanged_under_load(log: Log) -> None:
    """Each change is in one log or the other."""

    async def main() -> None:
        rng = np.random.default_rng(7)
        logs = [log, Log(2 * LOG_BYTES)]
        async with logging_frontend(log) as front:
            logging = front.device.dirty_logging
            assert logging is not None
            for number in range(12):
                async with quiet(front):
                    count, may = random_requests(front, rng)
                    front.rings[0].publish()
                    before = snapshot(front.memory)
                    for one in logs:
                        one.take()
                front.rings[0].kick(force=True)
                await turns(int(rng.integers(0, 4)))
                await logging.set_log(logs[(number + 1) % 2].describe())
                await run(front, count)
                async with quiet(front):
                    noted = logs[0].take() | logs[1].take()
                    assert changed(before, snapshot(front.memory)) <= noted
                    assert noted <= may | used_pages(front)
        logs[1].close()

    asyncio.run(main())


def test_event_tells_of_notes(log: Log) -> None:
    async def main() -> None:
        event = os.eventfd(0, os.EFD_NONBLOCK)
        async with logging_frontend(log) as front:
            assert front.device.dirty_logging is not None
            await front.device.dirty_logging.set_event(os.dup(event))
            add(front, OUT, [Segment((1 << 32) + MIB, 512)])
            await run(front, 1)
            assert os.eventfd_read(event)
        os.close(event)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["memory", "used ring", "nothing"])
def test_log_that_is_too_small_is_refused(log: Log, what: str) -> None:
    async def main() -> None:
        small = Log(0 if what == "nothing" else LOG_BYTES - 1 if what == "memory" else 1)
        async with logging_frontend(log) as front:
            logging = front.device.dirty_logging
            assert logging is not None
            if what == "used ring":
                await logging.set_logging(False)
                await front.device.set_vring_log(0, 8 * LOG_PAGE - 1)
            with pytest.raises(SetupError, match="dirty log of"):
                await logging.set_log(small.describe())
            if what != "used ring":
                log.take()
                may = add(front, IN, [Segment((1 << 32) + MIB, 512, True)])
                await run(front, 1)
                assert may <= log.take(), "the former log stays"
        small.close()

    asyncio.run(main())


def test_used_ring_outside_the_log_is_refused(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            with pytest.raises(SetupError, match="too small for the used ring"):
                await front.device.set_vring_log(0, (1 << 64) - 8)

    asyncio.run(main())


def test_memory_that_the_log_does_not_cover_is_refused(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            region = front.memory.add_region(1 << 40, 1 << 16)
            with pytest.raises(SetupError, match="too small for the memory region"):
                await front.device.add_region(handed_over([region])[0])
            assert len(front.device.queues.memory.regions) == 2

    asyncio.run(main())


def test_log_that_cannot_be_mapped_is_refused(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            logging = front.device.dirty_logging
            assert logging is not None
            read, write = os.pipe()
            with pytest.raises(SetupError, match="dirty log: the descriptor is not a memory file"):
                await logging.set_log(LogDescription(LOG_BYTES, 0, read))
            os.close(write)
            described = log.describe()
            with pytest.raises(SetupError, match="past the end of its file"):
                await logging.set_log(LogDescription(LOG_BYTES, 8192, described.fd))

    asyncio.run(main())


def test_log_that_is_truncated_ends_the_session_only(log: Log) -> None:
    async def main() -> None:
        reasons: list[str] = []
        async with logging_frontend(log) as front:
            front.device.set_disconnect(reasons.append)
            log.truncate()
            add(front, OUT, [Segment((1 << 32) + MIB, 512)])
            front.rings[0].kick(force=True)
            await front.until(lambda: reasons)
        assert reasons == ["it has truncated memory that it shares"]

    asyncio.run(main())


def test_lane_switch_keeps_the_log(log: Log) -> None:
    async def main() -> None:
        from vhostblk.virtio_blk.lane import Lane

        async with logging_frontend(log) as front:
            for lane in (Lane.PYTHON, Lane.EXPRESS):
                await front.device.switch_lane(lane)
                log.take()
                may = add(front, IN, [Segment((1 << 32) + MIB, 512, True)])
                await run(front, 1)
                assert may <= log.take()

    asyncio.run(main())


def test_status_is_what_it_was(log: Log) -> None:
    async def main() -> None:
        async with logging_frontend(log) as front:
            request = front.request(IN, want=512)
            assert await front.done(request) == Status.OK
            assert request.data == pattern(len(front.node.data))[:512]

    asyncio.run(main())
