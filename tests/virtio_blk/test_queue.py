# SPDX-License-Identifier: Apache-2.0
"""A queue end to end: the driver's requests, the disk's answers."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.block.support import options
from tests.frontend.blk import range_segments
from tests.frontend.ring import Segment
from tests.virtio_blk.support import UNSET, HandNode, bench, eventfds, pattern, turns
from tests.virtqueue.support import map_memory
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.completion import Completion
from vhostblk.virtio_blk.device import BlkDevice
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from vhostblk.block.graph.node import Failures
    from vhostblk.block.io.iovec import IoVec

pytestmark = pytest.mark.usefixtures("lane")

IN, OUT, FLUSH, GET_ID = RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("event_idx", [False, True])
def test_write_and_read_back(event_idx: bool) -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node, event_idx=event_idx) as b:
            content = pattern(4096)
            write = b.request(OUT, 5, send=content)
            assert await b.used() == [(write.head, 1)]
            read = b.request(IN, 5, want=4096)
            assert await b.used() == [(read.head, 4097)]
            assert (write.status, read.status) == (Status.OK, Status.OK)
            assert read.data == content == bytes(node.data[2560 : 2560 + 4096])

    asyncio.run(run())


def test_data_scattered_over_segments() -> None:
    async def run() -> None:
        async with bench(HandNode()) as b:
            content = pattern(1024)
            head = b.bytes_at(b"\x01" + bytes(15))
            status = b.memory.allocate(1, 1)
            pieces = [content[:1], content[1:700], content[700:]]
            segments = [Segment(b.bytes_at(piece), len(piece)) for piece in pieces]
            b.chain([Segment(head, 16), *segments, Segment(status, 1, True)])
            await b.used()
            assert bytes(b.node.data[:1024]) == content  # type: ignore[attr-defined]

    asyncio.run(run())


def test_null_disk_completes_a_burst_in_one_sweep() -> None:
    async def run() -> None:
        node = await Graph().add(options(driver="null-co", node_name="disk", size=1 << 20))
        async with bench(node, size=64) as b:
            requests = [b.request(OUT, n, send=bytes(512), kick=False) for n in range(20)]
            b.ring.kick(force=True)
            assert await b.used(20) == [(request.head, 1) for request in requests]
            assert all(request.status == Status.OK for request in requests)

    asyncio.run(run())


def test_longer_bursts_than_one_sweep_takes() -> None:
    async def run() -> None:
        node = await Graph().add(options(driver="null-co", node_name="disk", size=1 << 20))
        async with bench(node, size=2048) as b:
            requests = [b.request(FLUSH, kick=False) for _ in range(600)]
            b.ring.kick(force=True)
            assert len(await b.used(600)) == len(requests)

    asyncio.run(run())


def test_requests_complete_in_the_disks_order() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            first, second = b.request(IN, 0, want=512), b.request(IN, 1, want=512)
            await b.until(lambda: len(node.waiting) == 2)
            node.finish(1)
            assert await b.used() == [(second.head, 513)]
            assert first.status == UNSET
            node.finish(0)
            assert await b.used() == [(first.head, 513)]

    asyncio.run(run())


def test_disk_errors_become_statuses() -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            node.error = OSError(errno.EIO, "broken")
            failed = b.request(IN, 0, want=512)
            assert await b.used() == [(failed.head, 1)]
            node.error = OSError(errno.ENOTSUP, "unable")
            unsupported = b.request(FLUSH)
            await b.used()
            assert (failed.status, unsupported.status) == (Status.IOERR, Status.UNSUPP)

    asyncio.run(run())


def test_a_failed_request_is_answered_even_if_the_report_of_its_error_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an answer the guest would wait for ever."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            monkeypatch.setattr(BlkDevice, "report_error", fail)
            node.by_hand = True
            failed = b.request(IN, 0, want=512)
            await b.until(lambda: node.waiting)
            with pytest.raises(ZeroDivisionError):
                node.waiting[0].set_exception(OSError(errno.EIO, "broken"))
            assert await b.used() == [(failed.head, 1)]
            assert failed.status == Status.IOERR

    asyncio.run(run())


def test_bug_in_a_driver_costs_only_the_request(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            node.error = ZeroDivisionError()
            failed = b.request(IN, 0, want=512)
            await b.used()
            node.error = None
            fine = b.request(IN, 0, want=512)
            await b.used()
            assert (failed.status, fine.status) == (Status.IOERR, Status.OK)

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["test: request failed"]


class BurstNode(HandNode):
    """Takes bursts of writes; `outcome` is told when the test wants."""

    takes_bursts = True

    def __init__(self) -> None:
        super().__init__()
        self.bursts: list[list[int]] = []
        self.outcome: Completion[Failures] = Completion()

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        if offsets[0] == 0:
            return None
        self.bursts.append(offsets)
        for offset, iov in zip(offsets, iovs, strict=True):
            self.data[offset : offset + iov.nbytes] = iov.to_bytes()
        return self.outcome


def test_a_burst_of_writes_is_one() -> None:
    async def run() -> None:
        node = BurstNode()
        async with bench(node, size=64) as b:
            contents = [pattern(1024, seed) for seed in range(3)]
            requests = [b.request(OUT, 8 + 2 * n, send=contents[n], kick=False) for n in range(3)]
            b.ring.kick(force=True)
            await b.until(lambda: len(node.bursts) == 1)
            assert node.bursts == [[4096, 5120, 6144]]
            assert node.log == []
            assert requests[0].status == UNSET
            node.outcome.set_result([])
            assert await b.used(3) == [(request.head, 1) for request in requests]
            assert [request.status for request in requests] == [Status.OK] * 3
            assert bytes(node.data[4096 : 4096 + 3072]) == b"".join(contents)

    asyncio.run(run())


def test_of_a_burst_those_that_failed_get_an_error() -> None:
    async def run() -> None:
        node = BurstNode()
        node.outcome.set_result([None, OSError(errno.ENOSPC, "full"), ZeroDivisionError()])
        async with bench(node, size=64) as b:
            requests = [b.request(OUT, 8 + n, send=bytes(512), kick=False) for n in range(3)]
            b.ring.kick(force=True)
            await b.used(3)
            expected = [Status.OK, Status.IOERR, Status.IOERR]
            assert [request.status for request in requests] == expected

    asyncio.run(run())


@pytest.mark.parametrize(("first", "kind"), [(0, OUT), (10, IN)])
def test_what_is_no_burst_of_writes_goes_one_by_one(first: int, kind: RequestType) -> None:
    async def run() -> None:
        node = BurstNode()
        async with bench(node, size=64) as b:
            b.request(OUT, first, send=bytes(512), kick=False)  # at 0 the disk says no
            other = {"send": bytes(512)} if kind == OUT else {"want": 512}
            b.request(kind, 9, **other, kick=False)
            b.ring.kick(force=True)
            await b.used(2)
            assert (node.bursts, len(node.log)) == ([], 2)

    asyncio.run(run())


def test_a_refused_request_beside_writes_costs_them_nothing() -> None:
    async def run() -> None:
        node = BurstNode()
        node.outcome.set_result([])
        async with bench(node, size=64) as b:
            requests = [
                b.request(OUT, sector, send=bytes(512), kick=False) for sector in (9, 1 << 40, 11)
            ]
            b.ring.kick(force=True)
            await b.used(3)
            expected = [Status.OK, Status.IOERR, Status.OK]
            assert [request.status for request in requests] == expected

    asyncio.run(run())


def test_a_part_of_a_block_is_refused_beside_writes() -> None:
    async def run() -> None:
        node = BurstNode()
        node.outcome.set_result([])
        async with bench(node, size=64, block=4096) as b:
            requests = [
                b.request(OUT, sector, send=b"x" * length, kick=False)
                for sector, length in ((8, 4096), (16, 512), (25, 4096), (32, 4096))
            ]
            b.ring.kick(force=True)
            await b.used(4)
            expected = [Status.OK, Status.IOERR, Status.IOERR, Status.OK]
            assert [request.status for request in requests] == expected
            written = {8: 4096, 32: 4096}
            for sector in range(8, 48, 8):
                length = written.get(sector, 0)
                content = b"x" * length + bytes(4096 - length)
                assert node.data[512 * sector : 512 * sector + 4096] == content, sector

    asyncio.run(run())


@pytest.mark.parametrize("bursts", [False, True])
def test_a_driver_that_is_not_served_changes_nothing(bursts: bool) -> None:
    async def run() -> None:
        node = HandNode()
        if bursts:
            node = BurstNode()
            node.outcome.set_result([])
        node.data[:] = b"d" * len(node.data)
        async with bench(node, size=64, refused=True) as b:
            zeroes = range_segments([(0, 4096)])
            requests = [
                b.request(OUT, 8, send=bytes(512), kick=False),
                b.request(OUT, 16, send=bytes(512), kick=False),
            ]
            b.ring.kick(force=True)
            await b.used(2)
            requests += [
                b.request(RequestType.WRITE_ZEROES, send=zeroes),
                b.request(RequestType.DISCARD, send=zeroes),
                b.request(RequestType.FLUSH),
            ]
            await b.used(3)
            assert [request.status for request in requests] == [Status.IOERR] * 5
            assert not node.log
            assert node.data == b"d" * len(node.data)

    asyncio.run(run())


def test_get_id_tells_how_much_it_wrote() -> None:
    async def run() -> None:
        async with bench() as b:
            whole, short = b.request(GET_ID, want=20), b.request(GET_ID, want=3)
            assert await b.used(2) == [(whole.head, 21), (short.head, 4)]
            assert (whole.data, short.data) == (b"serial".ljust(20, b"\0"), b"ser")

    asyncio.run(run())


def test_nothing_is_taken_while_held() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.hold()
            b.queue.hold()
            request = b.request(FLUSH)
            await turns()
            b.queue.release()
            await turns()
            assert request.status == UNSET
            b.queue.release()
            await b.used()
            assert request.status == Status.OK

    asyncio.run(run())


def test_requests_in_flight_finish_while_held() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            request = b.request(FLUSH)
            await b.until(lambda: node.waiting)
            b.queue.hold()
            idle = asyncio.create_task(b.queue.wait_idle())
            await turns()
            assert not idle.done()
            node.finish()
            await idle
            assert request.status == Status.OK
            b.queue.release()

    asyncio.run(run())


def test_stop_waits_for_requests_in_flight_and_takes_no_more() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            first = b.request(FLUSH)
            await b.until(lambda: node.waiting)
            stopping = asyncio.create_task(b.stop())
            await turns()
            second = b.request(FLUSH)
            await turns()
            assert not stopping.done()
            node.finish()
            assert await stopping == 1
            assert (first.status, second.status) == (Status.OK, UNSET)
            assert b.ring.poll() == [(first.head, 1)]

    asyncio.run(run())


def test_stop_while_held() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.hold()
            b.request(FLUSH)
            assert await b.stop() == 0
            b.queue.release()
            await turns()

    asyncio.run(run())


def test_move_to_other_mappings() -> None:
    async def run() -> None:
        node = HandNode()
        async with bench(node) as b:
            b.queue.hold()
            await b.queue.wait_idle()
            b.queue.move(map_memory(b.memory))
            b.mapped = map_memory(b.memory)
            b.queue.release()
            request = b.request(OUT, 0, send=pattern(512))
            await b.used()
            assert request.status == Status.OK
            assert bytes(node.data[:512]) == pattern(512)

    asyncio.run(run())


def test_guest_is_notified_once_a_batch() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.set_call(b.ring.call_fd)
            os.eventfd_read(b.ring.call_fd)
            for _ in range(5):
                b.request(FLUSH, kick=False)
            b.ring.kick(force=True)
            await b.used(5)
            assert os.eventfd_read(b.ring.call_fd) == 1

    asyncio.run(run())


def test_new_call_descriptor_is_signalled_at_once() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.set_call(b.ring.call_fd)
            assert readable(b.ring.call_fd)

    asyncio.run(run())


def test_guest_that_wants_no_notification_gets_none() -> None:
    async def run() -> None:
        async with bench() as b:
            b.queue.set_call(b.ring.call_fd)
            os.eventfd_read(b.ring.call_fd)
            b.ring.suppress_interrupts()
            b.request(FLUSH)
            await b.used()
            assert not readable(b.ring.call_fd)

    asyncio.run(run())


@pytest.mark.parametrize("event_idx", [False, True])
def test_idle_queue_asks_for_kicks(event_idx: bool) -> None:
    async def run() -> None:
        async with bench(event_idx=event_idx) as b:
            for _ in range(3):
                b.request(FLUSH, kick=False)
                await b.until(b.ring.wants_notification)
                # The last kick may wake the iothread only now, which then looks by itself.
                if b.ring.publish():
                    os.eventfd_write(b.ring.kick_fd, 1)
                await b.used()

    asyncio.run(run())


def test_queue_without_a_kick_descriptor_is_polled() -> None:
    async def run() -> None:
        async with bench(kick=False) as b:
            request = b.request(FLUSH)
            await b.used()
            assert request.status == Status.OK

    asyncio.run(run())


def test_backend_counts_what_is_in_flight() -> None:
    async def run() -> None:
        node = HandNode()
        node.by_hand = True
        async with bench(node) as b:
            b.request(FLUSH)
            b.request(FLUSH)
            await b.until(lambda: len(node.waiting) == 2)
            assert b.backend.in_flight == b.queue.in_flight == 2
            node.finish_all()
            await b.used(2)
            assert b.backend.in_flight == b.queue.in_flight == 0

    asyncio.run(run())


def test_stopping_leaks_no_descriptor() -> None:
    async def run() -> None:
        for _ in range(3):
            async with bench() as b:
                b.request(FLUSH)
                await b.used()

    before = eventfds()
    asyncio.run(run())
    assert eventfds() <= before
