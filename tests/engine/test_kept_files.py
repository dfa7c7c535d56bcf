# SPDX-License-Identifier: Apache-2.0
"""Files that an io_uring keeps open by itself: there while there is work, gone with the last."""

from __future__ import annotations

import fcntl
import os
import platform
import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhostblk
from tests.block.locks import locked_bytes, needs_qemu_io, qemu_io
from tests.block.support import options
from tests.engine.support import Rig
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import LoopThread
from tests.frontend.memory import Memory
from tests.virtio_blk.support import MIB, pattern
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Files that one io_uring keeps, MAX_FILES in `io_uring.c`.
MAX_FILES = 64

_release = tuple(int(number) for number in platform.release().split(".")[:2])
keeps_files = pytest.mark.skipif(_release < (6, 14), reason="the kernel closes kept files late")


def locked_map(path: Path) -> ExtentMap:
    """Open a file, lock byte 100 of the open file, and describe it; the caller closes `fd`."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    lock = struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    return ExtentMap(ExtentKind.LINEAR, MIB, fd=fd, writable=True, flush=Treatment.FILE)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(pattern(MIB))
    return path


@keeps_files
def test_file_is_kept_while_the_queue_works_and_dropped_when_it_is_quiet(disk: Path) -> None:
    extents = locked_map(disk)
    with Rig() as rig:
        queue = rig.queue(extents)
        assert queue.run(RequestType.FLUSH).status == Status.OK
        os.close(extents.fd)
        assert locked_bytes(disk) == {100}
        read = queue.run(RequestType.IN, 1, want=512)
        assert (read.status, read.data) == (Status.OK, pattern(MIB)[512:1024])
        queue.hold()
        queue.wait_idle()
        assert not locked_bytes(disk)
        queue.release()


@keeps_files
def test_file_of_a_former_map_is_dropped_without_a_hold(disk: Path) -> None:
    extents = locked_map(disk)
    with Rig() as rig:
        queue = rig.queue(extents)
        assert queue.run(RequestType.FLUSH).status == Status.OK
        queue.set_map(None)
        os.close(extents.fd)
        rig.wait_until(lambda: not rig.lib.vb_port_mapped_in_flight(queue.port))
        assert not locked_bytes(disk)


def test_each_map_is_served_from_its_own_file(tmp_path: Path, io: str) -> None:
    """Also where a map follows another one at once, and a descriptor's number is used again."""
    paths = [tmp_path / str(number) for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(pattern(MIB, number))
    with Rig(io) as rig:
        queue = rig.queue()
        for turn in range(12):
            extents = locked_map(paths[turn % 3])
            if held := turn % 2:
                queue.hold()
                queue.wait_idle()
            queue.set_map(extents)
            if held:
                queue.release()
            read = queue.run(RequestType.IN, want=4096)
            assert (read.status, read.data) == (Status.OK, pattern(MIB, turn % 3)[:4096])
            os.close(extents.fd)
        assert not queue.stats()["upcalls"]


def test_queues_keep_files_of_their_own(tmp_path: Path, io: str) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(pattern(MIB, number))
    with Rig(io) as rig:
        maps = [locked_map(path) for path in paths]
        queues = [rig.queue(extents) for extents in maps]
        for turn in range(3):
            for number, queue in enumerate(queues):
                sent = pattern(512, 10 * turn + number)
                assert queue.run(RequestType.OUT, turn, send=sent).status == Status.OK
                assert queue.run(RequestType.IN, turn, want=512).data == sent
                assert paths[number].read_bytes()[512 * turn :][:512] == sent
        for extents in maps:
            os.close(extents.fd)


def test_request_by_a_new_map_while_one_by_the_former_map_is_in_flight(disk: Path) -> None:
    """The request in flight is a read from an empty pipe."""
    reading, writing = os.pipe()
    pipe = ExtentMap(ExtentKind.LINEAR, MIB, fd=reading)
    extents = locked_map(disk)
    with Rig() as rig:
        queue = rig.queue(pipe)
        former = queue.request(RequestType.IN, want=512)
        rig.wait_until(lambda: rig.lib.vb_port_mapped_in_flight(queue.port))
        queue.set_map(extents)
        read = queue.run(RequestType.IN, 3, want=512)
        assert (read.status, read.data) == (Status.OK, pattern(MIB)[1536:2048])
        os.write(writing, pattern(512, 9))
        queue.used()
        assert (former.status, former.data) == (Status.OK, pattern(512, 9))
    for fd in (reading, writing, extents.fd):
        os.close(fd)


@keeps_files
def test_queue_that_is_idle_has_let_go_of_its_file(disk: Path) -> None:
    with Rig() as rig:
        queue = rig.queue()
        for _ in range(200):
            extents = locked_map(disk)
            queue.set_map(extents)
            assert queue.run(RequestType.FLUSH).status == Status.OK
            os.close(extents.fd)
            queue.hold()
            queue.wait_idle()
            assert not locked_bytes(disk)
            queue.release()


def test_more_queues_than_files_are_kept(disk: Path, io: str) -> None:
    extents = locked_map(disk)
    with Rig(io) as rig:
        queues = [rig.queue(extents, size=4) for _ in range(MAX_FILES + 2)]
        for _ in range(2):
            for number, queue in enumerate(queues):
                read = queue.run(RequestType.IN, number, want=512)
                assert (read.status, read.data) == (
                    Status.OK,
                    pattern(MIB)[number * 512 : number * 512 + 512],
                )
            for queue in queues:
                queue.hold()
                queue.wait_idle()
                queue.release()
        for queue in queues:
            queue.hold()
            queue.wait_idle()
        os.close(extents.fd)
        assert not locked_bytes(disk)


class Served:
    """An export of a file on the express lane, and its driver, with a flush in every step.

    Flushes are what the io_uring does in any case.
    """

    def __init__(self, loop: LoopThread, disk: Path, directory: Path) -> None:
        self.loop = loop
        self._socket = directory / "v.sock"
        self.daemon: vhostblk.Daemon = loop.run(self._start(disk))
        self.memory = Memory(((0, 4 * MIB),))
        self.driver = BlkDriver(Connection.connect(self._socket), self.memory, num_queues=2)

    async def _start(self, disk: Path) -> vhostblk.Daemon:
        address = f"addr.type=unix,addr.path={self._socket}"
        threads = "x-vhostblk-iothreads.0=one,x-vhostblk-iothreads.1=two"
        daemon = vhostblk.Daemon(
            objects=["iothread,id=one", "iothread,id=two"],
            blockdevs=[f"driver=file,node-name=disk,filename={disk}"],
            exports=[
                f"type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,{address},{threads}"
            ],
        )
        return await daemon.__aenter__()

    def work(self) -> None:
        for queue in range(2):
            self.driver.write(4096 * queue, pattern(4096, queue), queue=queue)
            self.driver.flush(queue=queue)
            assert self.driver.read(4096 * queue, 4096, queue=queue) == pattern(4096, queue)

    def switch(self, lane: Lane) -> None:
        export: Any = self.daemon.exports["e"]
        self.loop.run(export.device.switch_lane(lane))

    def close(self) -> None:
        self.driver.close()
        self.loop.run(self.daemon.close())
        self.memory.close()


@pytest.fixture
def served(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("VHOSTBLK_LANE", "express")
    with LoopThread() as loop:
        service = Served(loop, disk, tmp_path)
        try:
            service.work()
            yield service
        finally:
            service.close()


@contextmanager
def writable_by_qemu(disk: Path) -> Iterator[None]:
    """Run a step after which QEMU must be able to write the image at once."""
    assert 'Failed to get "write" lock' in qemu_io(disk)
    yield
    assert not locked_bytes(disk)
    assert "read 1/1 bytes" in qemu_io(disk)


@needs_qemu_io
def test_export_that_is_removed_leaves_no_lock(served: Served, disk: Path) -> None:
    with writable_by_qemu(disk):
        served.loop.run(served.daemon.remove_export("e"))


@needs_qemu_io
def test_node_that_is_removed_leaves_no_lock_and_no_file(served: Served, disk: Path) -> None:
    with writable_by_qemu(disk):
        served.loop.run(served.daemon.remove_export("e"))
        served.loop.run(served.daemon.remove_blockdev("disk"))
    assert disk not in open_files()


def open_files() -> list[Path]:
    """What the descriptors of this process refer to."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the directory itself
            found.append(link.readlink())
    return found


@needs_qemu_io
def test_lane_changes_leave_no_lock_behind(served: Served, disk: Path) -> None:
    for lane in (Lane.PYTHON, Lane.EXPRESS, Lane.PYTHON, Lane.EXPRESS):
        held = locked_bytes(disk)
        served.switch(lane)
        assert locked_bytes(disk) == held
        served.work()
    served.switch(Lane.PYTHON)
    with writable_by_qemu(disk):
        served.loop.run(served.daemon.remove_export("e"))


def test_drained_section_lets_go_of_the_file(served: Served, disk: Path) -> None:
    """A node that is reopened has another open file; nobody keeps the former one, or its locks."""
    before = lock_count(disk)
    for read_write in range(4):
        served.loop.run(reopen(served, disk, direct=read_write % 2 == 0))
        served.work()
        assert lock_count(disk) == before


async def reopen(served: Served, disk: Path, *, direct: bool) -> None:
    members = {"driver": "file", "node_name": "disk", "filename": str(disk)}
    cache = {"direct": direct, "no-flush": False}
    await served.daemon.graph.reopen([options(**members, cache=cache)])


def lock_count(path: Path) -> int:
    """How many lines of the kernel's lock table are about a file."""
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(line.split()[5].endswith(f":{inode}") for line in lines)
