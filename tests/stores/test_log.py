# SPDX-License-Identifier: Apache-2.0
"""Dirty logging: a page must be written before it is marked in the log, as it may be copied then.

The front-end here copies a page each time it is marked. At the end, as at the destination of a
migration, the copy must be equal to memory. So no page may be written after its last mark.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.frontend.memory import MIB, Memory
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import Segment
from tests.stores import engine
from tests.stores.lives import remember
from tests.stores.tape import picture_of, recorded, restore
from tests.virtio_blk.dirty_log import pages
from tests.virtio_blk.support import HandNode, attach, header, make_device, pattern
from tests.virtqueue.kinds import KINDS
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.block.io.iovec import address_of
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.virtio_blk.express import ExpressQueue
from vhostblk.virtio_blk.layout import RequestType
from vhostblk.virtio_blk.queue import BlkQueue
from vhostblk.virtqueue import queue_log
from vhostblk.virtqueue.config import LogDescription
from vhostblk.virtqueue.dirty_log import LOG_PAGE, DirtyLog
from vhostblk.virtqueue.queue_log import QueueLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vhostblk.block.io.iovec import IoVec

pytestmark = pytest.mark.skipif(not engine.AVAILABLE, reason="no C compiler")

#: Ring size at which the index, the first elements and the last ones are in different pages.
SIZE = 1024
IN, OUT, GET_ID = RequestType.IN, RequestType.OUT, RequestType.GET_ID
#: The regions of guest memory; the second one has the requests.
LAYOUT = ((0, 64 * 1024), (1 << 24, MIB))
LOG_BYTES = ((1 << 24) + MIB) // LOG_PAGE // 8
#: The file ends inside a page.
FILE_BYTES = 100 * 1024 + 700
DISK_BYTES = 256 * 1024


class HoldingNode(HandNode):
    """A disk that can signal that it got a request."""

    held: Callable[[], None] | None = None

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if self.held is not None:
            self.held()
            self.held = None
        await super().preadv(offset, iov)


class Migration:
    """A queue, its driver, and a front-end that copies memory while both work."""

    def __init__(self, lane: str, extents: ExtentMap | None, *, packed: bool, event: bool) -> None:
        self.memory = Memory(LAYOUT)
        driver = KINDS["packed" if packed else "split"].driver
        first, second = self.memory._regions
        # A page begins with a split ring's second used element, and with a packed ring.
        first.next_free = 8 * LOG_PAGE - (0 if packed else 16 * SIZE + 2 * SIZE + 16)
        second.next_free += second.size  # there is no room for the ring
        self.ring = driver(self.memory, SIZE, event_idx=event, start=SIZE - 4)
        if not packed:
            assert self.ring.used_addr == 8 * LOG_PAGE - 8
        second.next_free = second.guest_addr
        self.copy = [region.bytes.copy() for region in self.memory._regions]
        self.mapped = map_memory(self.memory)
        self.node = HoldingNode(DISK_BYTES)
        self.node.data[:] = pattern(DISK_BYTES)
        log = RateLimitedLogger(logging.getLogger(__name__), "test: ")
        kind = KINDS["packed" if packed else "split"].device
        ring = kind(vring_config(self.ring, self.memory), self.mapped, event_idx=event)
        device = make_device(attach(self.node))
        self.thread: engine.TracedThread | None = None
        self.queue: BlkQueue | ExpressQueue
        if lane == "python":
            self.queue = BlkQueue(0, ring, device, os.dup(self.ring.kick_fd), log)
        else:
            self.thread = engine.TracedThread()
            self.queue = ExpressQueue(0, ring, device, None, log, self.thread)
        self.queue.set_extents(extents)
        self._kept: list[Any] = []
        #: The pages that a request may write, by its head.
        self.written: dict[int, set[int]] = {}

    def log(self) -> QueueLog:
        """Make a log that the front-end reads all the time."""
        fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.truncate(fd, LOG_BYTES)
        log = DirtyLog(LogDescription(LOG_BYTES, 0, fd))
        os.close(fd)
        entry = QueueLog(log, data=True, used_addr=self.ring.used_addr)
        self._kept.append(entry)
        engine.watch([])
        self.follow(entry)
        return entry

    def follow(self, entry: QueueLog) -> None:
        """Copy the pages that are marked in a log."""
        lib = engine.traced_engine().lib
        for region, copy in zip(self.mapped.regions, self.copy, strict=True):
            lib.stores_copy_region(
                region.guest_addr, region.size, region.mapping.address, address_of(copy)
            )
        lib.stores_follow_log(entry._log.address, entry._log.size)

    # The driver. The hypervisor logs its writes, so they are copied byte by byte.

    def wrote(self, addr: int, length: int) -> None:
        for region, copy in zip(self.memory._regions, self.copy, strict=True):
            start = addr - region.guest_addr
            if 0 <= start < region.size:
                copy[start : start + length] = region.bytes[start : start + length]

    def put(self, content: bytes, align: int = 1) -> int:
        addr = self.memory.allocate(len(content), align, region=1)
        self.memory.write(addr, content)
        self.wrote(addr, len(content))
        return addr

    def offer(self, kind: int, sector: int, lengths: list[int], align: int) -> None:
        """Make a request available."""
        ring = self.ring
        start = self.put(header(kind, sector))
        parts = [Segment(self.put(bytes([0xEE]) * n, align), n, kind != OUT) for n in lengths]
        parts.append(Segment(self.put(b"\xee"), 1, True))
        first = ring.next_avail
        head = ring.add([Segment(start, 16), *parts])
        ring.publish()
        self.written[head] = set().union(*(pages(*s[:2]) for s in parts if s.writable))
        if isinstance(ring, PackedDriverRing):
            for place in range(first, first + 1 + len(parts)):
                self.wrote(ring.desc_addr + 16 * (place % SIZE), 16)
        else:
            self.wrote(ring.desc_addr, 16 * SIZE)
            self.wrote(ring.avail_addr, 6 + 2 * SIZE)

    async def finish(self) -> None:
        """Wait until all requests have been answered, and the device asks for the next kick."""
        os.eventfd_write(self.ring.kick_fd, 1)
        async with asyncio.timeout(20):
            while self.ring.in_flight:
                await self.turn()
                self.ring.poll()
            for _ in range(5):
                await self.turn()

    async def turn(self) -> None:
        if self.thread is not None:
            self.thread.serve()
        await asyncio.sleep(0)

    def check(self) -> None:
        """Check that the copy is equal to memory."""
        for region, copy in zip(self.memory._regions, self.copy, strict=True):
            wrong = np.flatnonzero(region.bytes != copy)
            assert not len(wrong), f"{region.guest_addr + int(wrong[0]):#x} was not copied last"

    async def end(self) -> None:
        await self.queue.stop()
        self.ring.close()
        self.memory.close()


@asynccontextmanager
async def migration(
    lane: str, extents: ExtentMap | None, *, packed: bool, event: bool
) -> AsyncIterator[Migration]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_log, "load", engine.traced_engine)
        made = Migration(lane, extents, packed=packed, event=event)
        made.queue.start()
        try:
            yield made
        finally:
            await made.end()


def linear(fd: int, *, buffered: bool) -> ExtentMap:
    return ExtentMap(
        ExtentKind.LINEAR,
        size=DISK_BYTES,
        fd=fd,
        writable=True,
        flush=Treatment.FILE,
        buffered=buffered,
    )


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    path = tmp_path / "disk"
    path.write_bytes(pattern(FILE_BYTES))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("event", [False, True], ids=["flags", "event"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("way", ["python", "up", "file", "cache"])
def test_nothing_is_written_after_it_was_noted(
    way: str, packed: bool, event: bool, disk: int
) -> None:
    async def main() -> None:
        rng = random.Random(f"{way} {packed} {event}")
        lane = "python" if way == "python" else "express"
        extents = None
        if way in ("file", "cache"):
            extents = linear(disk, buffered=way == "cache")
        async with migration(lane, extents, packed=packed, event=event) as moved:
            # The ring was written before there was a log, so it is marked at once.
            moved.offer(IN, 0, [512], 512)
            await moved.finish()
            for region, copy in zip(moved.memory._regions[1:], moved.copy[1:], strict=True):
                copy[:] = region.bytes
            moved.queue.set_log(moved.log())
            moved.check()
            for number in range(30):
                for _ in range(rng.randint(1, 4) if number else 4):  # past the ring's end
                    kind = rng.choice([IN, IN, IN, OUT, GET_ID, 99])
                    lengths = [512 * rng.randint(1, 12) for _ in range(rng.randint(1, 2))]
                    if moved.ring.free >= len(lengths) + 2:
                        sector = rng.choice([rng.randrange(400), 1 << 40])
                        moved.offer(kind, sector, lengths, rng.choice([1, 512, 4096]))
                if number == 20:
                    moved.node.error = OSError(5, "no")
                await moved.finish()
                moved.check()
                if number % 10 == 9:  # another log
                    moved.queue.hold()
                    await moved.queue.wait_idle()
                    moved.queue.set_log(moved.log())
                    moved.queue.release()

    asyncio.run(main())


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("way", ["python", "up", "file", "cache"])
def test_what_is_shown_as_used_was_noted_before(way: str, packed: bool, disk: int) -> None:
    """Else, after a kill in between, a request counts as done whose data was not copied."""

    async def main() -> None:
        lane = "python" if way == "python" else "express"
        extents = None if way in ("python", "up") else linear(disk, buffered=way == "cache")
        async with migration(lane, extents, packed=packed, event=False) as moved:
            entry = moved.log()
            moved.queue.set_log(entry)
            base, _ = moved.mapped.regions[0].mapping.pages
            ring = (base, moved.memory._regions[0].next_free)
            bits = (entry._log.address, entry._log.size)
            for _ in range(3):
                for _ in range(3):
                    moved.offer(IN, 8, [512, 4096], 1)
                moved.offer(GET_ID, 0, [20], 1)
                driver = remember(moved.ring)
                with recorded([ring]) as tape:
                    tape.areas.append(bits)  # the engine stores there
                    engine.watch([ring, bits])
                    moved.follow(entry)
                    await moved.finish()
                    moments = tape.take_all() + engine.pictures(ring[1] + bits[1])
                assert moments
                now = picture_of([ring, bits])
                for picture in (*moments, now):
                    restore([ring], picture[: ring[1]])
                    noted = np.unpackbits(np.frombuffer(picture[ring[1] :], np.uint8),
                                          bitorder="little")  # fmt: skip
                    for used in remember(driver).poll():
                        assert all(noted[page] for page in moved.written[used.head])
                restore([ring], now[: ring[1]])

    asyncio.run(main())


@pytest.mark.parametrize("event", [False, True], ids=["flags", "event"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("lane", ["python", "express"])
def test_a_queue_that_stops_while_it_wants_no_kicks(lane: str, packed: bool, event: bool) -> None:
    """Its last request for kicks is copied, too."""

    async def main() -> None:
        async with migration(lane, None, packed=packed, event=event) as moved:
            moved.queue.set_log(moved.log())
            moved.check()
            moved.node.held = moved.queue.hold
            moved.offer(IN, 0, [512], 512)
            os.eventfd_write(moved.ring.kick_fd, 1)
            async with asyncio.timeout(20):
                while not moved.ring.has_used():
                    await moved.turn()
            moved.check()
            moved.queue.release()
            await moved.finish()
            moved.check()

    asyncio.run(main())
