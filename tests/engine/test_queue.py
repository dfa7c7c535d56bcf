# SPDX-License-Identifier: Apache-2.0
"""The life of a queue in the engine: hold, stop, move, break, sleep; and what it counts."""

from __future__ import annotations

import os
import select

import pytest

from tests.engine.support import TIMEOUT, EngineQueue, Rig
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import Segment
from tests.virtio_blk.support import MIB, UNSET, header, pattern
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import map_memory
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.layout import RequestType, Status

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH

NULL = ExtentMap(ExtentKind.NULL, MIB, writable=True, read_zeroes=True, flush=Treatment.IGNORE)


pytestmark = pytest.mark.usefixtures("ring_kind")


def memory_disk() -> tuple[int, ExtentMap]:
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.truncate(fd, MIB)
    return fd, ExtentMap(ExtentKind.LINEAR, MIB, fd=fd, writable=True, buffered=True)


def test_held_queue_takes_nothing() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        queue.hold()
        queue.hold()
        read = queue.request(IN, want=512)
        queue.release()
        assert queue.in_flight == 0
        assert read.status == UNSET
        queue.release()
        queue.used()
        assert read.status == Status.OK


def test_one_hold_is_enough() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        queue.hold()
        read = queue.request(IN, want=512)
        # A queue that is not held is served meanwhile.
        assert rig.queue(NULL).run(IN, want=512).status == Status.OK
        assert (queue.in_flight, read.status) == (0, UNSET)
        queue.release()
        queue.used()
        assert read.status == Status.OK


def test_becoming_idle_is_news_while_held() -> None:
    with Rig() as rig:
        queue = rig.queue()
        queue.request(FLUSH)
        (upcall,) = rig.wait_upcalls()
        queue.hold()
        queue.complete(upcall)
        rig.wait_news()
        assert queue.in_flight == 0


def test_completions_are_no_news_while_nobody_waits() -> None:
    """Else every request would wake the event loop."""
    fd, extents = memory_disk()
    with Rig() as rig:
        queue = rig.queue(extents)
        for number in range(20):
            assert queue.run(OUT, number, send=bytes(512)).status == Status.OK
        assert not select.select([rig.news_fd], [], [], 0)[0]
    os.close(fd)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("start", [0, 0xFFF0])
def test_stop_under_load_and_go_on(event_idx: bool, start: int) -> None:
    fd, extents = memory_disk()
    with Rig() as rig:
        queue = rig.queue(extents, size=32, event_idx=event_idx, start=start)
        sent = 0
        for _ in range(20):
            for _ in range(6):
                queue.request(OUT, sent, send=pattern(512, sent), kick=False)
                sent += 1
            queue.ring.kick(force=True)
            queue.hold()
            queue.wait_idle()
            done = queue.ring.poll()
            assert queue.close() == queue.ring.base
            queue.open()
            queue.release()
            queue.used(6 - len(done))
        assert os.pread(fd, sent * 512, 0) == b"".join(pattern(512, seed) for seed in range(sent))
    os.close(fd)


def test_memory_moves_under_load() -> None:
    fd, extents = memory_disk()
    with Rig() as rig:
        queue = rig.queue(extents, size=32)
        for turn in range(20):
            for number in range(6):
                queue.request(OUT, number, send=pattern(512, turn * 6 + number), kick=False)
            queue.ring.kick(force=True)
            queue.hold()
            queue.wait_idle()
            _move(queue)
            queue.release()
            queue.used(6)
            expected = b"".join(pattern(512, turn * 6 + number) for number in range(6))
            assert os.pread(fd, len(expected), 0) == expected
    os.close(fd)


def _move(queue: EngineQueue) -> None:
    """Map all guest memory elsewhere, and unmap it where it was."""
    from tests.engine.support import regions_of
    from tests.virtqueue.support import vring_config

    rig = queue.rig
    moved = map_memory(rig.memory)
    assert moved.span_base != rig.mapped.span_base
    config = vring_config(queue.ring, rig.memory)
    addresses = current_kind().device(config, moved, event_idx=False).addresses()
    regions, count = regions_of(rig.ffi, moved)
    ring = rig.ffi.new("struct vb_ring *", addresses)
    assert rig.lib.vb_queue_move(queue.handle, ring, regions, count) == 0
    rig.mapped = moved


def test_regions_that_went_away_are_not_used() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        queue.hold()
        from tests.engine.support import regions_of
        from tests.virtqueue.support import vring_config

        config = vring_config(queue.ring, rig.memory)
        addresses = current_kind().device(config, rig.mapped, event_idx=False).addresses()
        ring = rig.ffi.new("struct vb_ring *", addresses)
        regions, count = regions_of(rig.ffi, rig.mapped)
        assert count == 2
        assert rig.lib.vb_queue_move(queue.handle, ring, regions, 1) == 0
        queue.release()
        write = queue.request(IN, want=512)
        queue.used()
        assert write.status == UNSET
        assert queue.stats()["invalid"] == 1


_SPLIT_FAULTS = [
    ("split", "jump", "the avail index jumped by more than the queue's size"),
    ("split", "range", "a head is out of range"),
    ("split", "twice", "a head was made available while in flight"),
]
_PACKED_FAULTS = [
    ("packed", "endless", "a chain has no end"),
    ("packed", "range", "a buffer id is out of range"),
    ("packed", "twice", "a buffer id was made available while in flight"),
]


@pytest.mark.parametrize(
    ("ring_kind", "kind", "reason"), _SPLIT_FAULTS + _PACKED_FAULTS, indirect=["ring_kind"]
)
def test_broken_ring(kind: str, reason: str) -> None:
    with Rig() as rig:
        queue, other = rig.queue(), rig.queue(NULL)
        err_fd = os.eventfd(0, os.EFD_NONBLOCK)
        rig.lib.vb_queue_set_err(queue.handle, err_fd)
        flush = queue.request(FLUSH)
        (upcall,) = rig.wait_upcalls()
        ring = queue.ring
        if kind == "jump":
            ring.next_avail += ring.size + 1
        elif isinstance(ring, PackedDriverRing) and kind == "endless":
            ring.put(5, [(0, 0, 1)] * (ring.size - 1))
        else:
            ring.make_available(ring.size if kind == "range" else flush.head)
        ring.kick(force=True)
        assert select.select([err_fd], [], [], TIMEOUT)[0]
        rig.wait_until(lambda: queue.broken)
        assert queue.broken == reason
        # What was taken before is finished, nothing more is taken, other queues go on.
        queue.complete(upcall)
        rig.wait_until(ring.has_used)
        assert flush.status == Status.OK
        assert other.run(FLUSH).status == Status.OK
        ring.kick(force=True)
        assert other.run(FLUSH).status == Status.OK
        assert queue.in_flight == 0
        os.close(err_fd)


def test_head_that_the_kernel_works_on_is_not_taken_again() -> None:
    """The request in flight is a read from an empty pipe."""
    reading, writing = os.pipe()
    with Rig() as rig:
        queue = rig.queue(ExtentMap(ExtentKind.LINEAR, MIB, fd=reading))
        read = queue.request(IN, want=512)
        rig.wait_until(lambda: queue.in_flight)
        queue.ring.make_available(read.head)
        queue.ring.kick(force=True)
        rig.wait_until(lambda: queue.broken)
        assert queue.broken.endswith("was made available while in flight")
        os.write(writing, pattern(512, 4))
        rig.wait_until(queue.ring.has_used)
        assert (read.status, read.data) == (Status.OK, pattern(512, 4))
        assert queue.in_flight == 0
    os.close(reading)
    os.close(writing)


def _fill(rig: Rig, queue: EngineQueue, free: int) -> PackedDriverRing:
    """Put all but `free` descriptors of a packed ring in flight."""
    ring = queue.ring
    assert isinstance(ring, PackedDriverRing)
    while ring.free > free:
        queue.request(FLUSH, kick=False)
    ring.kick(force=True)
    rig.wait_until(lambda: queue.in_flight == (ring.size - free) // 2)
    return ring


@pytest.mark.parametrize("ring_kind", ["packed"], indirect=True)
def test_full_packed_ring_gives_nothing_whatever_its_flags_say() -> None:
    """Both descriptors of each flush are in flight."""
    with Rig() as rig:
        queue = rig.queue()
        ring = _fill(rig, queue, 0)
        ring.desc["flags"] ^= 0x8080  # mark all as available again
        ring.kick(force=True)
        assert rig.queue(NULL).run(IN, want=512).status == Status.OK
        assert (queue.in_flight, queue.broken) == (ring.size // 2, "")


@pytest.mark.parametrize("ring_kind", ["packed"], indirect=True)
def test_packed_chain_does_not_go_on_in_chains_in_flight() -> None:
    with Rig() as rig:
        queue = rig.queue()
        ring = _fill(rig, queue, 2)
        ring.put(ring.size - 1, [(0, 0, 0), (0, 0, 1)])  # the last one has the flag NEXT
        ring.kick(force=True)
        rig.wait_until(lambda: queue.broken)
        assert queue.broken == "a chain has no end"
        assert queue.in_flight == ring.size // 2 - 1


def test_ring_without_kick_descriptor_is_polled() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL, kick=False)
        for sector in range(5):
            assert queue.run(IN, sector, want=512).data == bytes(512)


def test_notifications_go_by_what_the_driver_asks_for() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        queue.run(FLUSH)
        notified = int(queue.stats()["notified"])
        queue.ring.suppress_interrupts()
        flush = queue.request(FLUSH)
        rig.wait_until(queue.ring.has_used)
        assert queue.stats()["notified"] == notified
        assert queue.used() == [(flush.head, 1)]


def test_burst_is_one_sweep_and_one_notification() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL, size=64)
        queue.hold()
        for number in range(16):
            queue.request(IN, number, want=512, kick=False)
        queue.ring.kick(force=True)
        queue.release()
        queue.used(16)
        stats = queue.stats()
        assert (stats["sweeps"], stats["notified"]) == (1, 1)
        assert stats["operations"][0] == 16


def test_statistics_add_up() -> None:
    fd, extents = memory_disk()
    with Rig() as rig:
        queue = rig.queue(extents)
        for number in range(7):
            queue.run(OUT, number, send=bytes(1024))
        for number in range(5):
            queue.run(IN, number, want=512)
        for status in (0, 1, 0):
            queue.request(FLUSH)
            (upcall,) = rig.wait_upcalls()
            queue.complete(upcall, status)
            queue.used()
        queue.run(99)
        queue.run(IN, MIB // 512, want=512)
        stats = queue.stats()
        assert stats["operations"].tolist() == [5, 7, 2, 0]
        assert stats["bytes"].tolist() == [5 * 512, 7 * 1024, 0, 0]
        assert stats["failed"].tolist() == [0, 0, 1, 0]
        assert (stats["invalid"], stats["upcalls"]) == (2, 3)
        assert stats["latency"].sum(axis=1).tolist() == stats["operations"].tolist()
        for kind in range(3):
            assert stats["total_ns"][kind] > 0
    os.close(fd)


@pytest.mark.parametrize("poll_ns", [0, 32768])
def test_idle_queues_use_no_cpu(poll_ns: int) -> None:
    fd, extents = memory_disk()
    with Rig(poll_ns=poll_ns) as rig:
        queues = [rig.queue(extents) for _ in range(4)]
        for queue in queues:
            for _ in range(50):
                queue.run(OUT, send=bytes(512))
        before = rig.cpu_time()
        select.select([rig.news_fd], [], [], 0.5)
        # A tick is 10 ms; a thread that spins uses 50 of them.
        assert rig.cpu_time() - before <= 5
    os.close(fd)


def test_many_queues_of_one_thread() -> None:
    with Rig() as rig:
        queues = [rig.queue(NULL, size=8) for _ in range(16)]
        for _ in range(3):
            pending = [queue.request(IN, want=512) for queue in queues]
            for queue in queues:
                queue.used()
            assert all(read.data == bytes(512) for read in pending)
        for queue in queues[::2]:
            queue.close()
        for queue in queues[1::2]:
            assert queue.run(FLUSH).status == Status.OK


def test_queue_that_was_never_opened_is_closed() -> None:
    """Setting a queue up fails where memory is short: the iothread's others are served on."""
    with Rig() as rig:
        queue = rig.queue(NULL)
        config = rig.ffi.new("struct vb_queue_config *", {"ring": {"size": 8}, "kick_fd": -1})
        unopened = rig.lib.vb_queue_new(rig.thread, config, rig.ffi.NULL, 0)
        assert unopened
        rig.lib.vb_port_close(rig.lib.vb_queue_port(unopened))
        assert queue.run(FLUSH).status == Status.OK


def test_size_of_the_device_changes() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        rig.lib.vb_queue_set_device_size(queue.handle, 512)
        assert queue.run(IN, 1, want=512).status == Status.IOERR
        rig.lib.vb_queue_set_device_size(queue.handle, MIB)
        assert queue.run(IN, 1, want=512).status == Status.OK


def test_chain_without_room_for_a_status() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        head_addr = rig.memory.allocate(16)
        rig.memory.write(head_addr, header(FLUSH))
        head = queue.ring.add([Segment(head_addr, 16)])
        queue.ring.kick(force=True)
        assert queue.used() == [(head, 0)]
        assert queue.run(FLUSH).status == Status.OK


def test_polling_is_changed_while_running() -> None:
    with Rig() as rig:
        queue = rig.queue(NULL)
        for max_ns in (0, 1 << 20, 1000, 0):
            rig.lib.vb_iothread_set_poll(rig.thread, max_ns, 2, 2)
            for _ in range(20):
                queue.run(FLUSH)
