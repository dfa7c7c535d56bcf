# SPDX-License-Identifier: Apache-2.0
"""Runs: requests of one sweep that follow each other in the file, done by one system call.

Requests that become available while the queue is held are taken by one sweep.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.support import EngineQueue, Rig
from tests.virtio_blk.support import MIB, UNSET, Pending, pattern
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
OK, IOERR = Status.OK, Status.IOERR
READ, WRITE = 0, 1

CONTENT = pattern(MIB)

#: VB_RUN_IOVS and MAX_INLINE_BYTES of the engine.
RUN_SEGMENTS = 128
RUN_BYTES = 256 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    """Open a file of the test pattern."""
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def linear(fd: int, **members: Any) -> ExtentMap:
    settings = {"size": MIB, "fd": fd, "writable": True, "flush": Treatment.FILE, **members}
    return ExtentMap(ExtentKind.LINEAR, **{"buffered": True, **settings})


class Wish(NamedTuple):
    """A request to make; in bytes."""

    kind: int
    offset: int
    data: int | bytes = 512
    pieces: int = 1


def sweep(queue: EngineQueue, wishes: Sequence[Wish]) -> list[Pending]:
    """Have all requests taken by one sweep, and wait; checks the used lengths."""
    queue.hold()
    made = []
    for wish in wishes:
        data: dict[str, Any] = {"want": wish.data} if wish.kind == IN else {"send": wish.data}
        if wish.kind == FLUSH:
            data = {}
        pending = queue.request(
            wish.kind, wish.offset // 512, pieces=wish.pieces, kick=False, **data
        )
        made.append((wish, pending))
    queue.ring.kick(force=True)
    queue.release()
    lengths = dict(queue.used(len(made)))
    for wish, pending in made:
        good_read = wish.kind == IN and pending.status == OK
        assert lengths[pending.head] == 1 + (int(wish.data) if good_read else 0)
    return [pending for _, pending in made]


def reads(count: int, length: int = 4096, first: int = 0, pieces: int = 1) -> list[Wish]:
    return [Wish(IN, first + number * length, length, pieces) for number in range(count)]


def writes(count: int, length: int = 4096, first: int = 0, seed: int = 1) -> list[Wish]:
    return [
        Wish(OUT, first + number * length, pattern(length, seed + number))
        for number in range(count)
    ]


def merged(queue: EngineQueue) -> tuple[int, int]:
    """Return how many reads, and writes, were done with the one before."""
    counts = queue.stats()["merged"]
    return int(counts[READ]), int(counts[WRITE])


def check_reads(wishes: Sequence[Wish], done: Sequence[Pending]) -> None:
    for wish, read in zip(wishes, done, strict=True):
        length = int(wish.data)
        assert (read.status, read.data) == (OK, CONTENT[wish.offset : wish.offset + length])


def test_sequential_reads_are_one_run(disk: int, io: str) -> None:
    with Rig(io) as rig:
        queue = rig.queue(linear(disk), size=64)
        wishes = reads(16)
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue) == (15, 0)
        stats = queue.stats()
        assert (stats["operations"][READ], stats["bytes"][READ]) == (16, 16 * 4096)
        assert stats["latency"][READ].sum() == 16


def test_sequential_writes_are_one_run(disk: int, io: str) -> None:
    with Rig(io) as rig:
        queue = rig.queue(linear(disk, offset=8192, size=MIB - 8192), size=64)
        wishes = writes(16, first=4096)
        assert all(write.status == OK for write in sweep(queue, wishes))
        assert merged(queue) == (0, 15)
        data = b"".join(bytes(wish.data) for wish in wishes)
        end = 12288 + len(data)
        assert os.pread(disk, MIB, 0) == CONTENT[:12288] + data + CONTENT[end:]


def test_run_of_requests_of_different_shapes(disk: int) -> None:
    with Rig() as rig:
        queue = rig.queue(linear(disk), size=64)
        shapes = [(512, 1), (8192, 16), (1024, 2), (4096, 1), (3072, 6)]
        wishes, offset = [], 1536
        for length, pieces in shapes:
            wishes.append(Wish(IN, offset, length, pieces))
            offset += length
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue) == (4, 0)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        pytest.param([Wish(IN, 0), Wish(IN, 512), Wish(IN, 1536)], 1, id="gap"),
        pytest.param([Wish(IN, 512), Wish(IN, 0)], 0, id="backwards"),
        pytest.param([Wish(IN, 0, 1024), Wish(IN, 512)], 0, id="overlap"),
        pytest.param([Wish(IN, 0), Wish(IN, 0)], 0, id="again"),
        pytest.param([Wish(IN, 0), Wish(OUT, 512, CONTENT[512:1024])], 0, id="read, write"),
        pytest.param(
            [Wish(IN, 0), Wish(OUT, 8192, bytes(512)), Wish(IN, 512)], 0, id="write between"
        ),
        pytest.param([Wish(IN, 0), Wish(FLUSH, 0, 0), Wish(IN, 512)], 1, id="flush between"),
        pytest.param([Wish(IN, 0), Wish(IN, MIB), Wish(IN, 512)], 1, id="refused one between"),
    ],
)
def test_what_a_run_is(disk: int, wishes: list[Wish], expected: int) -> None:
    with Rig() as rig:
        queue = rig.queue(linear(disk))
        done = sweep(queue, wishes)
        assert merged(queue) == (expected, 0)
        for wish, pending in zip(wishes, done, strict=True):
            assert pending.status == (IOERR if wish.offset == MIB else OK)
            if wish.kind == IN and wish.offset < MIB:
                assert pending.data == CONTENT[wish.offset : wish.offset + int(wish.data)]


def test_most_segments_of_a_run(disk: int) -> None:
    with Rig() as rig:
        queue = rig.queue(linear(disk), size=1024)
        wishes = reads(2 * RUN_SEGMENTS + 10, 512)
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue) == (len(wishes) - 3, 0)
        pieces = RUN_SEGMENTS // 2
        wishes = reads(3, 512 * pieces, pieces=pieces)  # two fit, just
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue)[READ] == 2 * RUN_SEGMENTS + 10 - 3 + 1
        wishes = reads(2, 512 * (RUN_SEGMENTS + 1), pieces=RUN_SEGMENTS + 1)  # not even one
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue)[READ] == 2 * RUN_SEGMENTS + 10 - 3 + 1


def test_most_bytes_of_a_run(disk: int) -> None:
    with Rig() as rig:
        queue = rig.queue(linear(disk), size=64)
        wishes = reads(5, RUN_BYTES // 2)
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue) == (2, 0)
        wishes = [Wish(IN, 0, RUN_BYTES), Wish(IN, RUN_BYTES), Wish(IN, RUN_BYTES + 512)]
        check_reads(wishes, sweep(queue, wishes))
        assert merged(queue) == (3, 0)


def test_nothing_runs_where_nothing_is_attempted(disk: int, io: str) -> None:
    with Rig(io) as rig:
        for settings, members in (({"write_through": True}, {}), ({}, {"buffered": False})):
            queue = rig.queue(linear(disk, **members), size=64, **settings)
            wishes = writes(8, seed=9)
            assert all(write.status == OK for write in sweep(queue, wishes))
            assert merged(queue) == (0, 0)
            data = b"".join(bytes(wish.data) for wish in wishes)
            assert os.pread(disk, len(data), 0) == data


def test_end_of_the_file_inside_a_run(disk: int, io: str) -> None:
    """The file is shorter than the disk: each read gets what there is, then zeroes."""
    os.truncate(disk, 10000)
    content = CONTENT[:10000].ljust(20480, b"\0")
    with Rig(io) as rig:
        queue = rig.queue(linear(disk), size=64)
        wishes = reads(5)
        for wish, read in zip(wishes, sweep(queue, wishes), strict=True):
            assert (read.status, read.data) == (OK, content[wish.offset : wish.offset + 4096])
        assert merged(queue) == (0, 0)


def test_end_of_the_disk(disk: int) -> None:
    with Rig() as rig:
        queue = rig.queue(linear(disk), size=64)
        done = sweep(queue, reads(4, first=MIB - 3 * 4096))
        check_reads(reads(3, first=MIB - 3 * 4096), done[:3])
        assert (done[3].status, done[3].data) == (IOERR, bytes([UNSET]) * 4096)
        assert merged(queue) == (2, 0)
        assert queue.stats()["invalid"] == 1


def test_writes_that_stop_in_the_middle_of_a_run(tmp_path: Path, io: str) -> None:
    """Each request has its own verdict: whole before the limit, failed across it and behind."""
    path = tmp_path / "limited"
    path.write_bytes(bytes(4096))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with Rig(io) as rig:
        queue = rig.queue(linear(fd), size=64)
        wishes = writes(6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 4096 + 1024, old[1]))
        try:
            done = sweep(queue, wishes)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert [write.status for write in done] == [OK] * 3 + [IOERR] * 3
        stats = queue.stats()
        assert merged(queue) == (0, 0)
        assert (stats["operations"][WRITE], stats["bytes"][WRITE]) == (3, 3 * 4096)
        assert stats["failed"][WRITE] == 3
        data = b"".join(bytes(wish.data) for wish in wishes)
        assert path.read_bytes() == data[: 3 * 4096 + 1024]
    os.close(fd)


@pytest.mark.parametrize("kind", [IN, OUT])
def test_memory_that_faults_in_the_middle_of_a_run(disk: int, io: str, kind: int) -> None:
    """Guest memory that has gone fails its own request only."""
    with Rig(io) as rig:
        queue = rig.queue(linear(disk), size=64)
        wishes = reads(5) if kind == IN else writes(5)
        queue.hold()
        made = []
        for wish in wishes:
            data: dict[str, Any] = {"want": 4096} if kind == IN else {"send": wish.data}
            made.append(queue.request(kind, wish.offset // 512, kick=False, align=4096, **data))
        page = host_address(rig, made[2].address)
        protect(page, 0)
        queue.ring.kick(force=True)
        queue.release()
        lengths = dict(queue.used(5))
        protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
        assert [pending.status for pending in made] == [OK, OK, IOERR, OK, OK]
        assert lengths[made[2].head] == 1
        stats = queue.stats()
        number = READ if kind == IN else WRITE
        assert (stats["operations"][number], stats["failed"][number]) == (4, 1)
        assert merged(queue) == (0, 0)
        if kind == IN:
            check_reads(wishes[:2] + wishes[3:], made[:2] + made[3:])
        else:
            written = [bytes(wish.data) for wish in wishes]
            written[2] = CONTENT[8192:12288]
            assert os.pread(disk, 20480, 0) == b"".join(written)


def host_address(rig: Rig, guest_addr: int) -> int:
    """Say where the engine sees a guest address."""
    (address,) = [
        region.mapping.address + guest_addr - region.guest_addr
        for region in rig.mapped.regions
        if region.guest_addr <= guest_addr < region.guest_addr + region.size
    ]
    return address


def protect(address: int, protection: int) -> None:
    """mprotect(2) for one page."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), 4096, protection) == 0, ctypes.get_errno()


def test_clusters_that_follow_each_other_in_the_file_only(disk: int) -> None:
    with Rig() as rig:
        lib, ffi = rig.lib, rig.ffi
        places = [8192, 65536, 12288, 0]
        table = ffi.new("uint64_t[]", [place | lib.VB_ENTRY_READ for place in places])
        encoded = ffi.new(
            "struct vb_extent_map *",
            {
                "kind": lib.VB_EXTENT_TABLE,
                "flags": lib.VB_EXTENT_BUFFERED,
                "fd": disk,
                "size": 4 * 4096,
                "cluster_bits": 12,
                "table": table,
            },
        )
        queue = rig.queue(device_size=4 * 4096)
        queue.use_map(encoded)
        wishes = [Wish(IN, 0, 4096), Wish(IN, 8192, 4096), Wish(IN, 12288, 4096)]
        done = sweep(queue, wishes)
        for wish, read in zip(wishes, done, strict=True):
            place = places[wish.offset // 4096]
            assert (read.status, read.data) == (OK, CONTENT[place : place + 4096])
        assert merged(queue) == (1, 0)
        assert not queue.stats()["upcalls"]


#: Sectors that generated requests touch: few, so that they meet.
SECTORS = 24

_requests = st.lists(
    st.tuples(
        st.sampled_from([IN, OUT]),
        st.integers(0, SECTORS - 1),
        st.integers(1, 4),
        st.booleans(),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=24,
)


@given(sweeps=st.lists(_requests, min_size=1, max_size=4), buffered=st.booleans())
def test_any_sweep_is_some_order_of_its_requests(sweeps: list[Any], buffered: bool) -> None:
    """Requests in flight together have no order, but each sector is as one of them left it."""
    fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.truncate(fd, SECTORS * 512)
    possible: list[set[bytes]] = [{bytes(512)} for _ in range(SECTORS)]
    with Rig() as rig:
        extents = linear(fd, buffered=buffered, size=SECTORS * 512)
        queue = rig.queue(extents, size=128, device_size=SECTORS * 512)
        for requests in sweeps:
            wishes: list[Wish] = []
            for kind, sector, count, follow, seed in requests:
                last = wishes[-1] if wishes and follow else None
                if last is not None:
                    kind = last.kind
                    sector = (last.offset + size_of(last)) // 512
                count = min(count, SECTORS - sector)
                if count > 0:
                    data = count * 512 if kind == IN else pattern(count * 512, seed)
                    wishes.append(Wish(kind, sector * 512, data, count))
            done = sweep(queue, wishes)
            written: list[set[bytes]] = [set() for _ in range(SECTORS)]
            for wish in wishes:
                if wish.kind == OUT:
                    for sector, data in sectors_of(wish.offset, bytes(wish.data)):
                        written[sector].add(data)
            for wish, pending in zip(wishes, done, strict=True):
                assert pending.status == OK
                if wish.kind == IN:
                    for sector, data in sectors_of(wish.offset, pending.data):
                        assert data in possible[sector] | written[sector]
            for sector, data in sectors_of(0, os.pread(fd, SECTORS * 512, 0)):
                assert data in (written[sector] or possible[sector])
                possible[sector] = {data}
    os.close(fd)


def size_of(wish: Wish) -> int:
    return wish.data if isinstance(wish.data, int) else len(wish.data)


def sectors_of(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """Cut bytes at `offset` into (sector, content)."""
    return [((offset + at) // 512, data[at : at + 512]) for at in range(0, len(data), 512)]
