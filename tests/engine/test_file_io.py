# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine serves from a file by itself, through io_uring and through threads."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.descriptors import open_fds
from tests.engine.support import Rig, spend
from tests.frontend.blk import range_segments
from tests.frontend.ring import Segment
from tests.virtio_blk.support import MIB, UNSET, header, pattern
from vhostblk.block.drivers.qcow2.layout import VOLATILE, VOLATILE_BITS
from vhostblk.engine.budget import EngineBudget
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.engine.sync import FileSync
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
DISCARD, ZEROES = RequestType.DISCARD, RequestType.WRITE_ZEROES

OK, IOERR = Status.OK, Status.IOERR


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(pattern(MIB))
    return path


def linear(fd: int, **members: Any) -> ExtentMap:
    return ExtentMap(
        ExtentKind.LINEAR,
        **{
            "size": MIB,
            "fd": fd,
            "writable": True,
            "zero_range": True,
            "flush": Treatment.FILE,
            "discard": Treatment.FILE,
            **members,
        },
    )


@pytest.mark.parametrize("buffered", [True, False])
def test_reads_and_writes(disk: Path, io: str, buffered: bool) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered))
        read = queue.run(IN, 3, want=4096)
        assert (read.status, read.data) == (OK, pattern(MIB)[1536 : 1536 + 4096])
        assert queue.run(OUT, 8, send=pattern(2048, 2), pieces=4).status == OK
        read = queue.run(IN, 8, want=4096, pieces=8)
        assert (read.status, read.data) == (OK, pattern(2048, 2) + pattern(MIB)[6144:8192])
        assert queue.run(FLUSH).status == OK
        assert os.pread(fd, 2048, 4096) == pattern(2048, 2)
        assert not queue.stats()["upcalls"]


@pytest.mark.parametrize("buffered", [True, False])
def test_used_lengths(disk: Path, io: str, buffered: bool) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered))
        for kind, how, expected in (
            (IN, {"want": 1024}, 1025),
            (OUT, {"send": bytes(1024)}, 1),
            (FLUSH, {}, 1),
            (RequestType.GET_ID, {"want": 20}, 21),
            (RequestType.GET_ID, {"want": 5}, 6),
            (99, {"send": bytes(8)}, 1),
        ):
            pending = queue.request(kind, **how)
            assert queue.used() == [(pending.head, expected)]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("write", [True, False])
def test_more_segments_than_one_system_call_takes(
    disk: Path, io: str, buffered: bool, write: bool
) -> None:
    """Each of 1020 descriptors is two segments, as it lies in two regions; all are the same."""
    count, border = 1020, 4 * MIB
    with opened(disk) as fd, Rig(io, layout=((0, border), (border, MIB))) as rig:
        memory = rig.memory
        assert memory.allocate(4096, region=1) == border
        queue = rig.queue(linear(fd, buffered=buffered))
        head, status = memory.allocate(16), memory.allocate(1)
        memory.write(head, header(OUT if write else IN))
        memory.write(border - 100, pattern(100, 5))
        memory.write(border, pattern(412, 6))
        data = [Segment(border - 100, 512, not write)] * count
        chain = [Segment(head, 16), *data, Segment(status, 1, True)]
        queue.ring.add(chain, indirect=True)
        queue.ring.kick(force=True)
        queue.used()
        assert memory.read(status, 1) == bytes([OK])
        found = memory.read(border - 100, 100) + memory.read(border, 412)
        if write:
            assert disk.read_bytes()[: count * 512] == (pattern(100, 5) + pattern(412, 6)) * count
        else:
            assert found == pattern(MIB)[(count - 1) * 512 : count * 512]


def test_end_of_file_reads_as_zeroes(tmp_path: Path, io: str) -> None:
    path = tmp_path / "short"
    path.write_bytes(pattern(1000))
    with opened(path) as fd, Rig(io) as rig:
        for buffered in (True, False):
            queue = rig.queue(linear(fd, buffered=buffered))
            read = queue.run(IN, want=4096, pieces=8)
            assert (read.status, read.data) == (OK, pattern(1000).ljust(4096, b"\0"))
            read = queue.run(IN, 64, want=512)
            assert (read.status, read.data) == (OK, bytes(512))


def test_end_of_file_inside_a_direct_block(tmp_path: Path, io: str) -> None:
    path = tmp_path / "short"
    path.write_bytes(pattern(5000))
    try:
        with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
            with mmap.mmap(-1, 4096) as page:
                os.preadv(fd, [page], 0)
    except OSError:
        pytest.skip("no O_DIRECT here")
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, alignment=512))
        read = queue.run(IN, want=8192, align=4096)
        assert (read.status, read.data) == (OK, pattern(5000).ljust(8192, b"\0"))


def test_misaligned_requests_come_up(disk: Path) -> None:
    with opened(disk) as fd, Rig() as rig:
        queue = rig.queue(linear(fd, alignment=4096))
        for sector, length, align in ((0, 512, 4096), (1, 4096, 4096), (0, 4096, 512)):
            pending = queue.request(IN, sector, want=length, align=align)
            (upcall,) = rig.wait_upcalls()
            assert upcall.head == pending.head
            queue.complete(upcall)
            queue.used()
        assert queue.run(IN, 8, want=4096, align=4096).status == OK


@pytest.mark.parametrize("buffered", [True, False])
def test_errors_fail_requests(disk: Path, tmp_path: Path, io: str, buffered: bool) -> None:
    with (
        opened(disk, os.O_RDONLY) as read_only,
        opened(tmp_path, os.O_RDONLY) as directory,
        Rig(io) as rig,
    ):
        queue = rig.queue(linear(read_only, buffered=buffered))
        assert queue.run(OUT, send=bytes(512)).status == IOERR
        assert queue.run(IN, want=512).status == OK
        other = rig.queue(linear(directory, buffered=buffered))
        read = other.request(IN, want=512)
        assert other.used() == [(read.head, 1)]
        assert read.status == IOERR
        assert list(other.stats()["failed"]) == [1, 0, 0, 0]


def test_full_device(io: str) -> None:
    with opened("/dev/full") as fd, Rig(io) as rig:
        for buffered in (True, False):
            queue = rig.queue(linear(fd, buffered=buffered))
            assert queue.run(OUT, send=bytes(512)).status == IOERR


@pytest.mark.parametrize("buffered", [True, False])
def test_write_that_stops_halfway(tmp_path: Path, io: str, buffered: bool) -> None:
    path = tmp_path / "limited"
    path.touch()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered))
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
        try:
            assert queue.run(OUT, send=pattern(16384), pieces=4).status == IOERR
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert path.read_bytes() == pattern(16384)[:8192]


def test_flush_that_failed_once_fails_for_ever(disk: Path, tmp_path: Path, io: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sync = FileSync()
    with opened(fifo) as pipe, opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(pipe, sync=sync))
        assert queue.run(FLUSH).status == IOERR
        assert sync.error == errno.EINVAL
        other = rig.queue(linear(fd, sync=sync))
        assert other.run(FLUSH).status == IOERR
        forgetful = rig.queue(linear(fd))
        assert forgetful.run(FLUSH).status == OK


def test_failure_to_store_a_write_counts_as_a_failed_flush(disk: Path) -> None:
    """The kernel reports lost data once, perhaps to a write of other data.

    The file accepts writes, but doesn't support RWF_DSYNC.
    """
    path = Path("/proc/self/coredump_filter")
    present = b"0x" + path.read_bytes().strip()
    sync = FileSync()
    with opened(path) as fd, opened(disk) as other_fd, Rig("pool") as rig:
        queue = rig.queue(linear(fd, sync=sync), write_through=True)
        assert queue.run(OUT, send=present.ljust(512, b"\0")).status == Status.UNSUPP
        assert sync.error == errno.EOPNOTSUPP
        other = rig.queue(linear(other_fd, sync=sync))
        assert other.run(FLUSH).status == Status.UNSUPP


def test_write_through_that_fails_as_a_write_is_no_failed_flush(disk: Path, io: str) -> None:
    sync = FileSync()
    with opened(disk, os.O_RDONLY) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, sync=sync), write_through=True)
        assert queue.run(OUT, send=bytes(512)).status == IOERR
        assert sync.error == 0


def test_what_syncs_a_file_takes_turns(disk: Path, io: str) -> None:
    """The kernel tells of lost data once, so no two may run at a time: one of them goes up."""
    sync = FileSync()
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, sync=sync, buffered=True))
        through = rig.queue(linear(fd, sync=sync, buffered=True), write_through=True)
        for turn in (rig.lib.VB_SYNC_ENGINE, rig.lib.VB_SYNC_PYTHON):
            assert rig.lib.vb_sync_try(sync.handle, turn)
            assert queue.run(OUT, send=bytes(512)).status == OK
            assert through.run(IN, want=512).status == OK
            for asked, kind, data in ((queue, FLUSH, b""), (through, OUT, bytes(512))):
                pending = asked.request(kind, send=data)
                (upcall,) = rig.wait_upcalls()
                assert (upcall.type, pending.status) == (kind, UNSET)
                asked.complete(upcall)
                asked.used()
            rig.lib.vb_sync_end(sync.handle, turn)
            for _ in range(2):
                assert queue.run(FLUSH).status == OK
                assert through.run(OUT, send=bytes(512)).status == OK
                assert through.run(FLUSH).status == OK
        assert (queue.stats()["upcalls"], through.stats()["upcalls"]) == (2, 2)


def test_write_that_fails_gives_the_turn_back(disk: Path, io: str) -> None:
    sync = FileSync()
    with opened(disk, os.O_RDONLY) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, sync=sync), write_through=True)
        for _ in range(2):
            assert queue.run(OUT, send=bytes(512)).status == IOERR
        assert not queue.stats()["upcalls"]
        assert rig.lib.vb_sync_try(sync.handle, rig.lib.VB_SYNC_PYTHON)


def test_throttled_write_does_not_keep_the_turn(disk: Path, io: str) -> None:
    sync = FileSync()
    with opened(disk) as fd, Rig(io) as rig:
        budget = EngineBudget(rig.ffi, rig.lib)
        budget.configure([(0, 0, 1)] * 3 + [(1, 0, 1)] + [(0, 0, 1)] * 2, 0, 0)
        while spend(budget, 1, 512, 0):
            pass
        queue = rig.queue(linear(fd, sync=sync, budget=budget), write_through=True)
        queue.request(OUT, send=bytes(512))
        (upcall,) = rig.wait_upcalls()
        assert rig.lib.vb_sync_try(sync.handle, rig.lib.VB_SYNC_PYTHON)
        queue.complete(upcall)
        queue.used()


def test_write_through(disk: Path, io: str) -> None:
    """Written with RWF_DSYNC, switched on and off while running."""
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=True), write_through=True)
        assert queue.run(OUT, send=pattern(4096, 3), pieces=2).status == OK
        rig.lib.vb_queue_set_write_through(queue.handle, 0)
        assert not queue.in_flight  # it has taken effect
        assert queue.run(OUT, 8, send=pattern(4096, 4)).status == OK
        assert os.pread(fd, 8192, 0) == pattern(4096, 3) + pattern(4096, 4)
        assert not queue.stats()["upcalls"]


def test_discard_and_write_zeroes(disk: Path, io: str) -> None:
    expected = bytearray(pattern(MIB))
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, offset=0))
        for kind, flags, at in ((DISCARD, 0, 0), (ZEROES, 0, 65536), (ZEROES, 1, 131072)):
            payload = range_segments([(at, 4096), (at + 8192, 0), (at + 16384, 8192)], flags)
            assert queue.run(kind, send=payload).status == OK
            expected[at : at + 4096] = bytes(4096)
            expected[at + 16384 : at + 24576] = bytes(8192)
        assert not queue.stats()["upcalls"]
        assert disk.read_bytes() == bytes(expected)


def test_discards_and_zeroes_go_to_where_the_map_says(tmp_path: Path, io: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(pattern(2 * MIB))
    expected = bytearray(pattern(2 * MIB))
    with opened(path) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, offset=MIB))
        assert queue.run(DISCARD, send=range_segments([(8192, 4096)])).status == OK
        assert queue.run(ZEROES, send=range_segments([(65536, 4096)])).status == OK
        expected[MIB + 8192 : MIB + 12288] = expected[MIB + 65536 : MIB + 69632] = bytes(4096)
        assert path.read_bytes() == bytes(expected)


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
@pytest.mark.parametrize("members", [{"writable": False}, {"alignment": 4096}])
def test_discards_and_zeroes_that_are_to_be_asked_for(
    disk: Path, kind: int, members: dict[str, Any]
) -> None:
    """They go to Python if writes do, or if the file's blocks are larger than the disk's."""
    with opened(disk) as fd, Rig() as rig:
        queue = rig.queue(linear(fd, **members))
        pending = queue.request(kind, send=range_segments([(512, 512)]))
        (upcall,) = rig.wait_upcalls()
        assert (upcall.type, pending.status) == (kind, UNSET)
        queue.complete(upcall)
        queue.used()
        assert disk.read_bytes() == pattern(MIB)


def test_segment_that_fails_fails_the_request(disk: Path, io: str) -> None:
    """The first one of two fails, as files can't get that long."""
    size, behind = 1 << 61, 1 << 60
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, size=size), device_size=size)
        payload = range_segments([(behind, 4096), (0, 4096)])
        assert queue.run(ZEROES, send=payload).status == IOERR


@pytest.mark.parametrize("flags", [0, 1], ids=["keep", "unmap"])
def test_zeroes_that_are_to_be_stored_at_once_come_up(disk: Path, io: str, flags: int) -> None:
    payload = range_segments([(0, 4096)], flags)
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=True), write_through=True)
        pending = queue.request(ZEROES, send=payload)
        (upcall,) = rig.wait_upcalls()
        assert (upcall.type, upcall.payload()) == (ZEROES, payload)
        assert disk.read_bytes() == pattern(MIB)
        queue.complete(upcall)
        queue.used()
        assert pending.status == OK
        rig.lib.vb_queue_set_write_through(queue.handle, 0)
        assert not queue.in_flight  # it has taken effect
        assert queue.run(ZEROES, send=payload).status == OK
        assert disk.read_bytes() == bytes(4096) + pattern(MIB)[4096:]


def test_wrong_discards_are_refused_before_anything_is_done(disk: Path) -> None:
    with opened(disk) as fd, Rig() as rig:
        queue = rig.queue(linear(fd))
        good = range_segments([(0, 4096)])
        for payload, status in (
            (good + range_segments([(MIB, 512)]), IOERR),
            (good + range_segments([(0, 512)], 1), Status.UNSUPP),
            (good + range_segments([(0, 512)], 2), Status.UNSUPP),
            (good + b"\0", IOERR),
            (bytes(16 * 33), IOERR),
        ):
            assert queue.run(DISCARD, send=payload).status == status
        assert disk.read_bytes() == pattern(MIB)


def test_fallocate_that_the_file_system_does_not_know_comes_up(io: str) -> None:
    """Tmpfs makes holes but no zeroes."""
    fd = os.memfd_create("disk")
    os.truncate(fd, MIB)
    with Rig(io) as rig:
        queue = rig.queue(linear(fd))
        assert queue.run(DISCARD, send=range_segments([(0, 4096)])).status == OK
        payload = range_segments([(0, 4096)])
        pending = queue.request(ZEROES, send=payload)
        (upcall,) = rig.wait_upcalls()
        assert (upcall.type, upcall.payload()) == (ZEROES, payload)
        assert pending.status == UNSET
        queue.complete(upcall)
        queue.used()
        assert pending.status == OK
    os.close(fd)


@pytest.mark.parametrize("kind", [FLUSH, DISCARD])
def test_what_the_map_does_not_say_comes_up(disk: Path, kind: int) -> None:
    with opened(disk) as fd, Rig() as rig:
        queue = rig.queue(linear(fd, flush=Treatment.ASK, discard=Treatment.ASK))
        send = range_segments([(0, 4096)]) if kind == DISCARD else b""
        pending = queue.request(kind, send=send)
        (upcall,) = rig.wait_upcalls()
        assert (upcall.type, pending.status) == (kind, UNSET)
        queue.complete(upcall)
        queue.used()
        assert pending.status == OK


def test_what_the_map_treats_as_nothing(disk: Path) -> None:
    with opened(disk) as fd, Rig() as rig:
        ignoring = linear(fd, flush=Treatment.IGNORE, discard=Treatment.IGNORE)
        queue = rig.queue(ignoring)
        assert queue.run(FLUSH).status == OK
        assert queue.run(DISCARD, send=range_segments([(0, 4096)])).status == OK
        assert disk.read_bytes() == pattern(MIB)


def test_read_only_device(disk: Path) -> None:
    with opened(disk) as fd, Rig() as rig:
        queue = rig.queue(linear(fd), writable=False)
        assert queue.run(OUT, send=bytes(512)).status == IOERR
        assert queue.run(DISCARD, send=range_segments([(0, 512)])).status == IOERR
        assert queue.run(ZEROES, send=range_segments([(0, 512)])).status == IOERR
        assert disk.read_bytes() == pattern(MIB)


def test_null_storage() -> None:
    with Rig() as rig:
        queue = rig.queue(ExtentMap(ExtentKind.NULL, MIB, writable=True, flush=Treatment.IGNORE))
        read = queue.run(IN, want=512)
        assert (read.status, read.data) == (OK, bytes([UNSET]) * 512)
        assert queue.run(OUT, send=bytes(512)).status == OK
        assert queue.run(ZEROES, send=range_segments([(0, 512)])).status == OK
        zeroes = rig.queue(ExtentMap(ExtentKind.NULL, MIB, read_zeroes=True))
        read = zeroes.run(IN, want=512, pieces=4)
        assert (read.status, read.data) == (OK, bytes(512))


def test_table_map(disk: Path, io: str) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        lib, ffi = rig.lib, rig.ffi
        both = lib.VB_ENTRY_READ | lib.VB_ENTRY_OVERWRITE
        table = ffi.new("uint64_t[]", [8192 | both, 12288 | both, lib.VB_ENTRY_ZERO, 0])
        encoded = ffi.new(
            "struct vb_extent_map *",
            {
                "kind": lib.VB_EXTENT_TABLE,
                "flags": lib.VB_EXTENT_WRITE | lib.VB_EXTENT_BUFFERED,
                "fd": fd,
                "size": 4 * 4096,
                "cluster_bits": 12,
                "table": table,
            },
        )
        queue = rig.queue(device_size=4 * 4096)
        queue.use_map(encoded)
        assert queue.run(IN, want=8192).data == pattern(MIB)[8192:16384]
        assert queue.run(IN, 16, want=4096).data == bytes(4096)
        assert queue.run(OUT, 8, send=pattern(4096, 7)).status == OK
        assert os.pread(fd, 4096, 12288) == pattern(4096, 7)
        for kind, sector, how in ((IN, 24, {"want": 512}), (OUT, 16, {"send": bytes(512)})):
            queue.request(kind, sector, **how)
            (upcall,) = rig.wait_upcalls()
            assert upcall.sector == sector
            queue.complete(upcall)
            queue.used()


@pytest.mark.parametrize("bit", [8, 16])
def test_write_through_to_volatile_clusters_comes_up(disk: Path, io: str, bit: int) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        lib, ffi = rig.lib, rig.ffi
        assert lib.VB_ENTRY_VOLATILE == VOLATILE == sum(VOLATILE_BITS)
        both = lib.VB_ENTRY_READ | lib.VB_ENTRY_OVERWRITE
        table = ffi.new("uint64_t[]", [8192 | both, 12288 | both | bit, 16384 | both])
        encoded = ffi.new(
            "struct vb_extent_map *",
            {
                "kind": lib.VB_EXTENT_TABLE,
                "flags": lib.VB_EXTENT_WRITE | lib.VB_EXTENT_BUFFERED,
                "fd": fd,
                "size": 3 * 4096,
                "cluster_bits": 12,
                "table": table,
            },
        )
        queue = rig.queue(device_size=3 * 4096)
        queue.use_map(encoded)
        assert queue.run(OUT, send=pattern(12288, 7)).status == OK
        rig.lib.vb_queue_set_write_through(queue.handle, 1)
        assert queue.run(OUT, send=pattern(4096, 8)).status == OK
        assert queue.run(OUT, 16, send=pattern(4096, 9)).status == OK
        for sector, length in ((8, 512), (15, 512), (7, 1024), (0, 12288), (8, 8192)):
            queue.request(OUT, sector, send=bytes(length))
            (upcall,) = rig.wait_upcalls()
            assert upcall.sector == sector
            queue.complete(upcall)
            queue.used()
        expected = pattern(4096, 8) + pattern(12288, 7)[4096:8192] + pattern(4096, 9)
        assert queue.run(IN, want=12288).data == expected == os.pread(fd, 12288, 8192)
        table[1] &= ~lib.VB_ENTRY_VOLATILE
        assert queue.run(OUT, send=pattern(12288, 3)).status == OK
        assert os.pread(fd, 12288, 8192) == pattern(12288, 3)


@pytest.mark.parametrize("max_batch", [0, 3])
def test_more_in_flight_than_the_io_uring_holds(disk: Path, io: str, max_batch: int) -> None:
    with opened(disk) as fd, Rig(io, max_batch=max_batch) as rig:
        queue = rig.queue(linear(fd), size=2048)
        content = pattern(MIB)
        reads = {}
        for number in range(600):
            pending = queue.request(IN, number, want=512, kick=False)
            reads[number] = pending
        queue.ring.kick(force=True)
        queue.used(len(reads))
        for number, read in reads.items():
            assert (read.status, read.data) == (OK, content[number * 512 : number * 512 + 512])


def test_operations_wait_while_the_kernel_takes_none(disk: Path) -> None:
    """There are more than fit in the submission queue; another file replaces the io_uring's."""
    rings = open_fds("anon_inode:[io_uring]")
    content = pattern(MIB)
    with opened(disk) as fd, opened(os.devnull) as null, Rig() as rig:
        (ring,) = open_fds("anon_inode:[io_uring]") - rings
        queue = rig.queue(linear(fd, buffered=False), size=2048)
        assert queue.run(IN, want=512).status == OK
        for _ in range(2):
            saved = os.dup(ring)
            os.dup2(null, ring, inheritable=False)
            reads = [queue.request(IN, number, want=512, kick=False) for number in range(600)]
            queue.ring.kick(force=True)
            rig.wait_until(lambda: queue.in_flight == 600)
            os.dup2(saved, ring, inheritable=False)
            os.close(saved)
            queue.used(len(reads))
            for number, read in enumerate(reads):
                assert (read.status, read.data) == (OK, content[number * 512 :][:512])
