# SPDX-License-Identifier: Apache-2.0
"""Requests that come up because no map covers them, and what is answered."""

from __future__ import annotations

import os
import select

import pytest

from tests.engine.support import EngineQueue, Rig, Upcall
from tests.frontend.ring import Segment
from tests.virtio_blk.support import MIB, UNSET, header, pattern
from vhostblk.block.io.iovec import view_memory
from vhostblk.engine.extents import ExtentKind, ExtentMap
from vhostblk.virtio_blk.layout import RequestType, Status

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH


def test_request_is_served_from_above() -> None:
    with Rig() as rig:
        queue = rig.queue()
        read = queue.request(IN, 5, want=1024, pieces=2)
        (upcall,) = rig.wait_upcalls()
        assert (upcall.head, upcall.type, upcall.sector) == (read.head, IN, 5)
        at = 0
        for base, length in upcall.segments:
            view_memory(base, length)[:] = pattern(1024)[at : at + length]
            at += length
        assert read.status == UNSET
        queue.complete(upcall, written=1024)
        assert queue.used() == [(read.head, 1025)]
        assert (read.status, read.data) == (Status.OK, pattern(1024))


@pytest.mark.parametrize(
    ("status", "written", "used"),
    [(0, 0, 1), (0, 511, 512), (1, 512, 1), (2, 0, 1), (0, 0xFFFF_FFFE, 0xFFFF_FFFF)],
)
def test_status_and_used_length(status: int, written: int, used: int) -> None:
    with Rig() as rig:
        queue = rig.queue()
        read = queue.request(IN, want=512)
        (upcall,) = rig.wait_upcalls()
        queue.complete(upcall, status, written)
        assert queue.used() == [(read.head, used)]
        assert read.status == status


def test_takes_no_more_than_asked_for() -> None:
    with Rig() as rig:
        queue = rig.queue(size=64)
        for number in range(10):
            queue.request(OUT, number, send=bytes(512), kick=False)
        queue.ring.kick(force=True)
        rig.wait_until(lambda: queue.in_flight == 10)
        taken = rig.take(limit=3)
        assert [upcall.sector for upcall in taken] == [0, 1, 2]
        assert len(rig.take(limit=64, segments=4)) == 4
        assert [upcall.sector for upcall in rig.take()] == [7, 8, 9]
        assert rig.take() == []
        rig.lib.vb_port_hold(queue.port)
        for head in queue.ring._chains:
            queue.complete(taken[0]._replace(tag=head))
        queue.used(10)


def test_long_segment_lists_fit_or_wait() -> None:
    with Rig() as rig:
        queue = rig.queue(size=512)
        short = queue.request(OUT, 1, send=bytes(512))
        long = queue.request(OUT, 2, send=pattern(512 * 100), pieces=100)
        rig.wait_until(lambda: queue.in_flight == 2)
        first = rig.take(segments=100)
        assert [upcall.head for upcall in first] == [short.head]
        second = rig.take(segments=100)
        assert [upcall.head for upcall in second] == [long.head]
        assert len(second[0].segments) == 100
        assert second[0].payload() == pattern(512 * 100)
        for upcall in (*first, *second):
            queue.complete(upcall)
        queue.used(2)


def test_completing_twice_or_what_is_not_up_does_nothing() -> None:
    with Rig() as rig:
        queue = rig.queue()
        flush = queue.request(FLUSH)
        (upcall,) = rig.wait_upcalls()
        queue.complete(upcall._replace(tag=(flush.head + 1) % 16))
        assert queue.in_flight == 1
        queue.complete(upcall)
        queue.complete(upcall, status=1)
        assert queue.used() == [(flush.head, 1)]
        assert flush.status == Status.OK
        assert queue.in_flight == 0
        assert int(queue.ring.used_idx[0]) == 1


def test_upcalls_of_two_queues() -> None:
    with Rig() as rig:
        one, two = rig.queue(), rig.queue()
        first = one.request(OUT, 1, send=bytes(512))
        rig.wait_until(lambda: one.in_flight == 1)
        second = two.request(OUT, 2, send=bytes(512))
        rig.wait_until(lambda: two.in_flight == 1)
        taken = rig.take()
        assert [upcall.sector for upcall in taken] == [1]  # those of one queue at a time
        taken += rig.take()
        assert [upcall.sector for upcall in taken] == [1, 2]
        one.complete(taken[0])
        two.complete(taken[1], status=1)
        one.used()
        two.used()
        assert (first.status, second.status) == (Status.OK, Status.IOERR)


def test_map_is_revoked_and_given_back() -> None:
    null = ExtentMap(ExtentKind.NULL, MIB, writable=True)
    with Rig() as rig:
        queue = rig.queue(null)
        assert queue.run(OUT, send=bytes(512)).status == Status.OK
        queue.hold()
        queue.set_map(None)
        queue.release()
        write = queue.request(OUT, send=bytes(512))
        (upcall,) = rig.wait_upcalls()
        assert write.status == UNSET
        queue.complete(upcall)
        queue.used()
        queue.hold()
        queue.set_map(null)
        queue.release()
        assert queue.run(OUT, send=bytes(512)).status == Status.OK
        assert queue.stats()["upcalls"] == 1


def test_memory_for_segments_is_bounded() -> None:
    """Where a guest fills its ring with the longest requests the engine waits, and sleeps."""
    offered = 1200
    with Rig() as rig:
        queue = rig.queue(size=2048)
        memory, ring = rig.memory, queue.ring
        head, status, data = memory.allocate(16), memory.allocate(1), memory.allocate(16)
        memory.write(head, header(OUT))
        chain = [Segment(head, 16), *[Segment(data, 1)] * 1020, Segment(data, 4)]
        first = ring.add([*chain, Segment(status, 1, True)], indirect=True)
        for _ in range(1, offered):
            other = ring._free.pop()
            ring.desc[other] = ring.desc[first]
            ring._chains[other] = [other]
            ring.make_available(other)
        ring.kick(force=True)
        taken = rig.wait_upcalls_until_asleep((16 << 20) // (16 * 1021))
        assert len(taken) < offered
        before = rig.cpu_time()
        assert not select.select([ring.call_fd], [], [], 0.2)[0] or not ring.poll()
        assert rig.cpu_time() - before <= 5
        for upcall in taken:
            queue.complete(upcall)
        rest = rig.wait_upcalls(offered - len(taken))
        for upcall in rest:
            queue.complete(upcall)
        queue.used(offered)


def announced(rig: Rig) -> bool:
    return bool(select.select([rig.news_fd], [], [], 0)[0])


def answered(queue: EngineQueue, upcalls: list[Upcall]) -> list[int]:
    """Answer requests; return their sectors."""
    for upcall in upcalls:
        queue.complete(upcall, 1)
    queue.used(len(upcalls))
    return [upcall.sector for upcall in upcalls]


def test_python_looks_in_the_place_of_the_thread() -> None:
    """What comes while Python looks goes up without a kick, and without news."""
    with Rig() as rig:
        queue = rig.queue(event_idx=True)
        queue.request(IN, 0, want=512)
        assert answered(queue, rig.wait_upcalls()) == [0]
        assert rig.lib.vb_upcalls_look(rig.thread) == 1
        queue.request(IN, 1, want=512)  # may be kicked still, as the thread had asked for that
        assert rig.lib.vb_upcalls_look(rig.thread) == 1
        assert answered(queue, rig.take_all()) == [1]
        if announced(rig):  # of sector 0
            os.eventfd_read(rig.news_fd)
        for sector in range(2, 6):
            queue.request(IN, sector, want=512, kick=False)
            assert not queue.ring.publish()
            assert rig.lib.vb_upcalls_look(rig.thread) == 1
            assert answered(queue, rig.take_all()) == [sector]
            assert not announced(rig)


def test_thread_looks_again_when_python_looks_no_more() -> None:
    with Rig() as rig:
        queue = rig.queue(event_idx=True)
        rig.lib.vb_upcalls_look(rig.thread)
        queue.request(IN, 1, want=512)
        rig.lib.vb_upcalls_look(rig.thread)
        assert answered(queue, rig.take_all()) == [1]
        queue.request(IN, 2, want=512)  # unseen: it came after the last look
        rig.lib.vb_upcalls_look_no_more(rig.thread)
        assert answered(queue, rig.wait_upcalls()) == [2]
        queue.request(IN, 3, want=512)
        assert answered(queue, rig.wait_upcalls()) == [3]


def test_ring_that_is_polled_is_polled_again() -> None:
    with Rig() as rig:
        queue = rig.queue(kick=False)
        rig.lib.vb_upcalls_look(rig.thread)
        rig.lib.vb_upcalls_look_no_more(rig.thread)
        queue.request(IN, 1, want=512)
        assert answered(queue, rig.wait_upcalls()) == [1]


def test_thread_lets_python_look_only_for_queues_without_a_map() -> None:
    with Rig() as rig:
        mapped = rig.queue(ExtentMap(kind=ExtentKind.NULL, size=MIB, writable=True))
        assert rig.lib.vb_upcalls_look(rig.thread) == 0
        queue = rig.queue()
        assert rig.lib.vb_upcalls_look(rig.thread) == 1
        assert mapped.run(IN, 1, want=512).status == Status.OK
        queue.request(IN, 1, want=512)
        assert rig.lib.vb_upcalls_look(rig.thread) == 1
        assert answered(queue, rig.take_all()) == [1]


def test_upcalls_beside_those_looked_for_are_announced_in_the_end() -> None:
    with Rig() as rig:
        queue = rig.queue()
        mapped = rig.queue(ExtentMap(kind=ExtentKind.NULL, size=MIB, writable=False))
        assert rig.lib.vb_upcalls_look(rig.thread) == 1
        mapped.request(OUT, 7, send=bytes(512))
        rig.wait_until(lambda: mapped.in_flight == 1)
        assert not announced(rig)
        rig.lib.vb_upcalls_look_no_more(rig.thread)
        rig.wait_news()
        assert answered(mapped, rig.take_all()) == [7]
        rig.lib.vb_upcalls_look(rig.thread)
        mapped.request(OUT, 8, send=bytes(512))
        rig.wait_until(lambda: mapped.in_flight == 1)
        queue.hold()
        queue.close()  # the only one that is looked for
        assert rig.lib.vb_upcalls_look(rig.thread) == 0
        rig.wait_news()
        assert answered(mapped, rig.take_all()) == [8]
