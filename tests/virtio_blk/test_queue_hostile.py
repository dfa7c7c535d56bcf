# SPDX-License-Identifier: Apache-2.0
"""Hostile guests, end to end: every chain is answered, and nobody else is troubled.

The numbers are those of the list in the project's protocol notes; loops, tables, addresses and
rings by themselves are tested with the walker and the split queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import struct
import threading

import pytest

from tests.frontend.ring import Segment
from tests.virtio_blk.support import UNSET, HandNode, bench, header, pattern, turns
from vhostblk.ratelimit import BURST as LOG_BURST
from vhostblk.virtio_blk import queue as queue_module
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.layout import DESC_F_NEXT, DESC_F_WRITE

pytestmark = pytest.mark.usefixtures("lane")

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
HOLE = 1 << 40


def test_1_loop_is_answered_and_the_next_request_served() -> None:
    async def run() -> None:
        async with bench() as b:
            status = b.bytes_at(bytes([UNSET]))
            loop = b.chain([Segment(status, 1, True)], status=status, kick=False)
            b.ring.desc[loop.head] = (status, 1, DESC_F_NEXT | DESC_F_WRITE, loop.head)
            fine = b.request(FLUSH)
            assert await b.used(2) == [(loop.head, 1), (fine.head, 1)]
            assert (loop.status, fine.status) == (Status.IOERR, Status.OK)

    asyncio.run(run())


def test_2_broken_ring_signals_the_error_descriptor(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        error_fd = os.eventfd(0)
        async with bench() as b:
            b.queue.set_err(error_fd)
            b.ring.make_available(99)
            b.ring.kick(force=True)
            await b.until(lambda: select.select([error_fd], [], [], 0)[0])
            b.ring.kick(force=True)
            await turns()
            assert await b.stop() == 0
            assert int(b.ring.used_idx[0]) == 0
        assert os.eventfd_read(error_fd) == 1
        os.close(error_fd)

    asyncio.run(run())
    assert len(caplog.records) == 1
    assert "queue 0 is broken" in caplog.text


def test_2_requests_in_flight_finish_after_the_ring_broke(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            request = b.request(FLUSH)
            await b.until(lambda: node.waiting)
            b.ring.avail_idx[0] += 1000
            b.ring.kick(force=True)
            os.eventfd_write(b.ring.kick_fd, 1)
            await b.until(lambda: "queue 0 is broken" in caplog.text)
            node.finish()
            assert await b.used() == [(request.head, 1)]
            assert request.status == Status.OK

    asyncio.run(run())
    assert len(caplog.records) == 1


def test_4_unmapped_data_is_answered() -> None:
    async def run() -> None:
        async with bench() as b:
            head, status = b.bytes_at(header(IN)), b.bytes_at(bytes([UNSET]))
            chain = [Segment(head, 16), Segment(HOLE, 512, True), Segment(status, 1, True)]
            request = b.chain(chain, status=status)
            assert await b.used() == [(request.head, 1)]
            assert request.status == Status.IOERR

    asyncio.run(run())


def test_5_descriptors_changed_while_they_are_used() -> None:
    """What was checked is what is used, whichever of two contents that was."""

    async def run() -> None:
        node = HandNode()
        async with bench(node, size=64) as b:
            stop = threading.Event()
            far = 1 << 32
            data = b.memory.allocate(4096)

            def change() -> None:
                desc = b.ring.desc
                while not stop.is_set():
                    desc["addr"][1:3] = HOLE
                    desc["len"][1:3] = 0xFFFF_FFFF
                    desc["next"][1:3] = 999
                    desc["flags"][1:3] = 0xFFFF
                    desc[1] = (data, 512, DESC_F_NEXT | DESC_F_WRITE, 2)
                    desc[2] = (status, 1, DESC_F_WRITE, 0)

            head, status = b.bytes_at(header(IN)), b.bytes_at(bytes([UNSET]))
            assert far <= head
            thread = threading.Thread(target=change)
            thread.start()
            try:
                for _ in range(300):
                    b.ring.desc[0] = (head, 16, DESC_F_NEXT, 1)
                    b.ring.make_available(0)
                    b.ring._chains[0] = []
                    b.ring.kick(force=True)
                    assert (await b.used())[0][0] == 0
            finally:
                stop.set()
                thread.join()

    asyncio.run(run())


def test_6_chain_without_room_for_a_status_is_used_all_the_same() -> None:
    async def run() -> None:
        async with bench() as b:
            head = b.bytes_at(header(FLUSH))
            request = b.chain([Segment(head, 16)])
            assert await b.used() == [(request.head, 0)]
            assert b.memory.read(head, 16) == header(FLUSH)

    asyncio.run(run())


def test_6_status_is_never_written_to_readable_memory() -> None:
    async def run() -> None:
        async with bench() as b:
            head, status = b.bytes_at(header(FLUSH)), b.bytes_at(bytes([UNSET]))
            request = b.chain([Segment(head, 16), Segment(status, 1)], status=status)
            assert await b.used() == [(request.head, 0)]
            assert request.status == UNSET

    asyncio.run(run())


def test_6_one_byte_descriptors() -> None:
    async def run() -> None:
        node = HandNode()
        node.data[:512] = pattern(512)
        async with bench(node, size=1024) as b:
            head, data = b.bytes_at(header(IN)), b.memory.allocate(513)
            chain = [Segment(head + n, 1) for n in range(16)]
            chain += [Segment(data + n, 1, True) for n in range(513)]
            request = b.chain(chain, data=data, length=513)
            assert await b.used() == [(request.head, 513)]
            assert request.data == pattern(512) + b"\0"

    asyncio.run(run())


def test_7_head_made_available_again_while_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            request = b.request(FLUSH)
            await b.until(lambda: node.waiting)
            b.ring.make_available(request.head)
            b.ring.kick(force=True)
            await b.until(lambda: "in flight" in caplog.text)
            assert len(node.waiting) == 1
            node.finish()
            assert await b.used() == [(request.head, 1)]

    asyncio.run(run())


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize("sector", [2048, 2047, 1 << 55, (1 << 64) - 1])
def test_8_ranges_past_the_end(kind: RequestType, sector: int) -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            if kind == IN:
                request = b.request(kind, sector, want=1024)
            else:
                request = b.request(kind, sector, send=bytes(1024))
            assert await b.used() == [(request.head, 1)]
            assert request.status == Status.IOERR
            assert node.log == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (bytes(15), Status.IOERR),
        (b"", Status.IOERR),
        (struct.pack("<QII", 0, 1, 0) * 33, Status.IOERR),
        (struct.pack("<QII", 0, 1, 0x80), Status.UNSUPP),
        (struct.pack("<QII", 1 << 55, 1, 0), Status.IOERR),
    ],
)
@pytest.mark.parametrize("kind", [RequestType.DISCARD, RequestType.WRITE_ZEROES])
def test_9_discard_segments(kind: RequestType, payload: bytes, status: Status) -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            request = b.request(kind, send=payload)
            assert await b.used() == [(request.head, 1)]
            assert request.status == status
            assert node.log == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", [2, 5, 10, 14, 16, 0xFFFF_FFFF])
def test_10_unknown_types(kind: int) -> None:
    async def run() -> None:
        async with bench() as b:
            requests = [b.request(kind, want=512), b.request(kind, send=bytes(16))]
            await b.used(2)
            assert [request.status for request in requests] == [Status.UNSUPP] * 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "send"),
    [
        (OUT, bytes(512)),
        (RequestType.DISCARD, struct.pack("<QII", 0, 1, 0)),
        (RequestType.WRITE_ZEROES, struct.pack("<QII", 0, 1, 0)),
    ],
)
def test_10_writes_on_a_read_only_device(kind: RequestType, send: bytes) -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node, writable=False) as b:
            request = b.request(kind, send=send)
            assert await b.used() == [(request.head, 1)]
            assert request.status == Status.IOERR
            assert node.log == []

    asyncio.run(run())


def test_11_read_without_a_buffer_has_an_honest_length() -> None:
    async def run() -> None:
        async with bench() as b:
            request = b.request(IN)
            assert await b.used() == [(request.head, 1)]
            assert request.status == Status.OK

    asyncio.run(run())


def test_12_kick_storm_before_during_and_after() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.hold()
            os.eventfd_write(b.ring.kick_fd, 1 << 40)
            await turns()
            b.queue.release()
            for _ in range(200):
                os.eventfd_write(b.ring.kick_fd, 1)
                await asyncio.sleep(0)
            request = b.request(FLUSH)
            assert await b.used() == [(request.head, 1)]
            await b.stop()
            os.eventfd_write(b.ring.kick_fd, 1)
            late = b.request(FLUSH)
            await turns()
            assert late.status == UNSET

    asyncio.run(run())


def test_12_semaphore_as_kick_descriptor_does_not_block() -> None:
    async def run() -> None:
        fd = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
        async with bench() as b:
            assert b.queue._kick_fd is not None
            os.dup2(fd, b.queue._kick_fd)
            request = b.request(FLUSH)
            # An iothread may wait on what was there before, or on this one already.
            os.eventfd_write(fd, 1)
            await b.used()
            assert request.status == Status.OK
        os.close(fd)

    asyncio.run(run())


def test_13_data_read_into_the_rings(caplog: pytest.LogCaptureFixture) -> None:
    """The guest has its own rings overwritten: its ring breaks, nothing else does."""

    async def run() -> None:
        node = HandNode()
        node.data[:] = b"\xff" * len(node.data)
        async with bench(node) as b:
            head, status = b.bytes_at(header(IN)), b.bytes_at(bytes([UNSET]))
            rings = Segment(b.ring.desc_addr, 512, True)
            request = b.chain([Segment(head, 16), rings, Segment(status, 1, True)], status=status)
            await b.until(lambda: request.status != UNSET)
            await turns()
            assert request.status == Status.OK

    asyncio.run(run())
    assert len(caplog.records) <= 1


def test_14_log_lines_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        node = HandNode()
        node.error = OSError(5, "broken")
        async with bench(node) as b:
            for _ in range(20):
                b.request(FLUSH)
                await b.used()

    with caplog.at_level(logging.DEBUG, "tests.virtio_blk"):
        asyncio.run(run())
    assert len(caplog.records) == LOG_BURST


def test_14_queues_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTBLK_LANE", Lane.PYTHON.value)  # the other has a thread of its own

    async def run() -> None:
        async with bench(size=1024) as busy, bench() as other:
            for _ in range(3 * queue_module.BURST):
                busy.ring.add([Segment(0, 1, True)])
            busy.ring.publish()
            os.eventfd_write(busy.ring.kick_fd, 1)
            request = other.request(FLUSH)
            await other.used()
            assert request.status == Status.OK
            assert int(busy.ring.used_idx[0]) < 3 * queue_module.BURST
            await busy.used(3 * queue_module.BURST)

    asyncio.run(run())
