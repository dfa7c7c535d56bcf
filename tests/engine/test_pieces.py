# SPDX-License-Identifier: Apache-2.0
"""Long transfers are done in pieces, and many requests in several turns; nothing of it shows."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.engine.support import EngineQueue, Rig
from tests.frontend.ring import Segment
from tests.virtio_blk.support import MIB, header, pattern
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT = RequestType.IN, RequestType.OUT

SIZE = 6 * MIB
LAYOUT = ((0, MIB), (1 << 32, 2 * SIZE))


@pytest.fixture(params=["disk", "memory"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A file of a file system that has a disk, or not."""
    if request.param == "disk":
        fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    else:
        fd = os.memfd_create("disk", os.MFD_CLOEXEC)
    os.truncate(fd, SIZE)
    yield fd
    os.close(fd)


def linear(fd: int, *, buffered: bool = True) -> ExtentMap:
    return ExtentMap(
        ExtentKind.LINEAR, SIZE, fd=fd, writable=True, buffered=buffered, flush=Treatment.IGNORE
    )


class Transfer:
    """A long request in segments of any length, and where its data is."""

    def __init__(self, queue: EngineQueue, kind: int, sector: int, length: int, seed: int) -> None:
        self.memory = memory = queue.ring.memory
        rng = random.Random(seed)
        head = memory.allocate(16)
        memory.write(head, header(kind, sector))
        self._status = memory.allocate(1, 1)
        memory.write(self._status, b"\xff")
        self._address, self._length = memory.allocate(length, 16), length
        cuts = sorted({0, length, *(rng.randrange(length) for _ in range(40))})
        data = [
            Segment(self._address + start, end - start, kind == IN) for start, end in pairwise(cuts)
        ]
        chain = [Segment(head, 16), *data, Segment(self._status, 1, True)]
        queue.ring.add(chain, indirect=True)

    @property
    def status(self) -> int:
        return self.memory.read(self._status, 1)[0]

    @property
    def data(self) -> bytes:
        return self.memory.read(self._address, self._length)

    @data.setter
    def data(self, content: bytes) -> None:
        self.memory.write(self._address, content)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("length", [256 * 1024 + 512, 5 * MIB + 4096])
def test_long_transfers(io: str, fd: int, buffered: bool, length: int) -> None:
    with Rig(io, layout=LAYOUT) as rig:
        queue = rig.queue(linear(fd, buffered=buffered), device_size=SIZE, size=128)
        content = pattern(length, 1)
        write = Transfer(queue, OUT, 3, length, 1)
        write.data = content
        queue.ring.kick(force=True)
        queue.used()
        assert write.status == Status.OK
        assert os.pread(fd, length + 512, 3 * 512) == content + bytes(512)
        read = Transfer(queue, IN, 3, length, 2)
        queue.ring.kick(force=True)
        ((_, used),) = queue.used()
        assert (read.status, used) == (Status.OK, length + 1)
        assert read.data == content
        assert queue.stats()["bytes"].tolist() == [length, length, 0, 0]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("end", [0, 100, 256 * 1024, 3 * MIB + 77])
def test_what_is_behind_the_end_of_the_file_is_zeroes(
    io: str, fd: int, buffered: bool, end: int
) -> None:
    content = pattern(end, 3)
    os.truncate(fd, 0)
    os.pwrite(fd, content, 0)
    length = 5 * MIB
    with Rig(io, layout=LAYOUT) as rig:
        queue = rig.queue(linear(fd, buffered=buffered), device_size=SIZE, size=128)
        read = Transfer(queue, IN, 0, length, 4)
        read.data = b"\xee" * length
        queue.ring.kick(force=True)
        ((_, used),) = queue.used()
        assert (read.status, used) == (Status.OK, length + 1)
        assert read.data == content + bytes(length - end)


def test_long_reads_of_zeroes() -> None:
    null = ExtentMap(ExtentKind.NULL, SIZE, writable=True, read_zeroes=True)
    length = 5 * MIB + 512
    with Rig(layout=LAYOUT) as rig:
        queue = rig.queue(null, device_size=SIZE, size=128)
        read = Transfer(queue, IN, 0, length, 5)
        read.data = b"\xee" * length
        queue.ring.kick(force=True)
        queue.used()
        assert (read.status, read.data) == (Status.OK, bytes(length))


def test_long_write_that_fails(io: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    with Rig(io, layout=LAYOUT) as rig:
        queue = rig.queue(linear(fd), device_size=SIZE, size=128)
        write = Transfer(queue, OUT, 0, 5 * MIB, 6)
        queue.ring.kick(force=True)
        queue.used()
        assert write.status == Status.IOERR
    os.close(fd)


def test_held_queue_finishes_what_it_has_begun(io: str, fd: int) -> None:
    length = 5 * MIB
    os.pwrite(fd, pattern(length, 7), 0)
    with Rig(io, layout=LAYOUT) as rig:
        queue = rig.queue(linear(fd), device_size=SIZE, size=128)
        read = Transfer(queue, IN, 0, length, 7)
        queue.ring.kick(force=True)
        rig.wait_until(lambda: queue.in_flight or queue.ring.has_used())
        queue.hold()
        queue.wait_idle()
        assert read.data == pattern(length, 7)
        queue.release()


def test_one_turn_takes_a_part_of_a_long_queue() -> None:
    null = ExtentMap(ExtentKind.NULL, MIB, writable=True, read_zeroes=True)
    with Rig(layout=((0, MIB), (1 << 32, 8 * MIB))) as rig:
        queue = rig.queue(null, size=4096)
        queue.hold()
        for number in range(1000):
            queue.request(IN, number % 8, want=512, kick=False)
        queue.ring.kick(force=True)
        queue.release()
        queue.used(1000)
        assert queue.stats()["sweeps"] >= 4


def test_others_have_their_turn_during_long_reads() -> None:
    null = ExtentMap(ExtentKind.NULL, SIZE, writable=True, read_zeroes=True)
    with Rig(layout=LAYOUT) as rig:
        long, short = rig.queue(null, device_size=SIZE, size=1024), rig.queue(null)
        head, status = rig.memory.allocate(16), rig.memory.allocate(1, 1)
        rig.memory.write(head, header(IN))
        data = Segment(rig.memory.allocate(SIZE), SIZE, True)
        for _ in range(100):
            long.ring.add([Segment(head, 16), data, Segment(status, 1, True)])
        long.ring.kick(force=True)
        served = 0
        while long.ring.in_flight:
            assert short.run(IN, want=512).status == Status.OK
            served += 1
            long.ring.poll()
        assert served >= 5
