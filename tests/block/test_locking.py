# SPDX-License-Identifier: Apache-2.0
"""Image locks, among ourselves and against real QEMU processes."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.locks import locked_bytes, needs_qemu_io, qemu_io
from tests.block.support import RW, options, run
from vhostblk.block.errors import BlockError, ImageLockedError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.locking import ImageLock, lock_bytes
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXCLUSIVE = Perm.ALL & ~(Perm.WRITE | Perm.RESIZE)
READ = Perm.CONSISTENT_READ


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def two_files(image: Path) -> Iterator[tuple[ImageLock, ImageLock]]:
    fds = [os.open(image, os.O_RDWR) for _ in range(2)]
    yield ImageLock(fds[0], "x"), ImageLock(fds[1], "x")
    for fd in fds:
        os.close(fd)


def test_bytes_are_those_of_qemu() -> None:
    assert lock_bytes(Perm.ALL, Perm.ALL) == {100, 101, 102, 103}
    assert lock_bytes(Perm.NONE, Perm.NONE) == {200, 201, 202, 203}
    assert lock_bytes(RW, EXCLUSIVE) == {100, 101, 201, 203}


def test_two_writers_exclude_each_other(
    two_files: tuple[ImageLock, ImageLock], image: Path
) -> None:
    first, second = two_files
    first.acquire(RW, EXCLUSIVE)
    with pytest.raises(ImageLockedError) as caught:
        second.acquire(RW, EXCLUSIVE)
    assert str(caught.value) == (
        'Failed to get "write" lock. Is another process using the image [x]?'
    )
    assert locked_bytes(image) == {100, 101, 201, 203}
    second.acquire(READ, Perm.ALL)
    first.acquire(Perm.NONE, Perm.ALL)
    assert locked_bytes(image) == {100}
    second.acquire(RW, EXCLUSIVE)


def test_unsharing_what_another_has_taken(two_files: tuple[ImageLock, ImageLock]) -> None:
    first, second = two_files
    first.acquire(RW, Perm.ALL)
    with pytest.raises(ImageLockedError, match='Failed to get shared "write" lock'):
        second.acquire(READ, EXCLUSIVE)
    second.acquire(RW, Perm.ALL)


def test_locks_move_to_another_descriptor(image: Path) -> None:
    fds = [os.open(image, os.O_RDWR) for _ in range(2)]
    lock = ImageLock(fds[0], "x")
    lock.acquire(RW, EXCLUSIVE)
    lock.transfer(fds[1])
    os.close(fds[0])
    assert locked_bytes(image) == {100, 101, 201, 203}
    lock.acquire(RW | Perm.RESIZE, EXCLUSIVE)
    os.close(fds[1])
    assert not locked_bytes(image)


def test_a_moving_lock_is_held_at_every_moment(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [os.open(image, os.O_RDWR) for _ in range(2)]
    lock = ImageLock(fds[0], "x")
    lock.acquire(RW, EXCLUSIVE)
    held = locked_bytes(image)
    seen: list[set[int]] = []
    for name in ("_set", "_release"):
        original = getattr(ImageLock, name)

        def step(self: ImageLock, *arguments: Any, original: Any = original) -> None:
            original(self, *arguments)
            seen.append(locked_bytes(image))

        monkeypatch.setattr(ImageLock, name, step)
    lock.transfer(fds[1])
    assert len(seen) > len(held)
    assert all(each == held for each in seen)
    for fd in fds:
        os.close(fd)


def test_a_permission_that_is_refused_leaves_the_others_locked(
    two_files: tuple[ImageLock, ImageLock], image: Path
) -> None:
    first, second = two_files
    first.acquire(RW, Perm.ALL & ~Perm.RESIZE)
    second.acquire(READ, Perm.ALL & ~Perm.RESIZE)
    before = locked_bytes(image)
    with pytest.raises(ImageLockedError):
        second.acquire(READ | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
    assert locked_bytes(image) == before
    first.acquire(Perm.NONE, Perm.ALL)
    assert locked_bytes(image) == {100, 203}


async def writer_on(image: Path, **members: object) -> tuple[Graph, BlockBackend]:
    graph = Graph()
    node = await graph.add(options(driver="file", node_name="disk", filename=str(image), **members))
    backend = BlockBackend("test", RW)
    try:
        backend.attach(graph, node)
    except BlockError:
        await graph.close()
        raise
    return graph, backend


def test_a_second_node_on_the_same_file_is_refused_unless_locking_is_off(image: Path) -> None:
    async def main() -> None:
        graph, backend = await writer_on(image, auto_read_only=True)
        assert locked_bytes(image) == {100, 101, 201, 203}
        with pytest.raises(ImageLockedError):
            await writer_on(image)
        other, other_backend = await writer_on(image, locking="off")
        for one, its_backend in ((graph, backend), (other, other_backend)):
            await its_backend.detach()
            await one.close()
        assert not locked_bytes(image)

    run(main)


def test_the_first_writer_keeps_the_locks_of_readers(image: Path) -> None:
    """The file is opened again for it."""

    async def main() -> None:
        graph = Graph()
        node = await graph.add(
            options(driver="file", node_name="disk", filename=str(image), auto_read_only=True)
        )
        reader = BlockBackend("reader", READ, Perm.ALL & ~Perm.RESIZE)
        reader.attach(graph, node)
        before = locked_bytes(image)
        assert before
        writer = BlockBackend("writer", READ | Perm.WRITE)
        writer.attach(graph, node)
        assert before < locked_bytes(image)
        await writer.detach()
        await reader.detach()
        await graph.close()

    run(main)


def test_two_exports_of_one_node_get_along(image: Path) -> None:
    async def main() -> None:
        graph, backend = await writer_on(image)
        second = BlockBackend("second", RW)
        second.attach(graph, graph.find("disk"))
        await second.detach()
        assert locked_bytes(image) == {100, 101, 201, 203}
        await backend.detach()
        await graph.close()

    run(main)


@needs_qemu_io
def test_qemu_io_respects_our_locks(image: Path) -> None:
    async def main() -> None:
        graph, backend = await writer_on(image)
        assert 'Failed to get "write" lock' in qemu_io(image)
        assert "read 1/1 bytes" in qemu_io(image, "-r")
        await backend.detach()
        assert "read 1/1 bytes" in qemu_io(image)
        await graph.close()

    run(main)


@pytest.fixture
def running_qemu_io(image: Path) -> Iterator[None]:
    process = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while 101 not in locked_bytes(image):
        assert time.monotonic() < deadline, "qemu-io takes no lock"
        time.sleep(0.005)
    yield
    process.communicate(b"quit\n", timeout=20)


@needs_qemu_io
@pytest.mark.usefixtures("running_qemu_io")
def test_we_respect_a_running_qemu_io(image: Path) -> None:
    async def main() -> None:
        with pytest.raises(ImageLockedError) as caught:
            await writer_on(image)
        assert str(caught.value) == (
            f'Failed to get shared "write" lock. Is another process using the image [{image}]?'
        )
        graph = Graph()
        node = await graph.add(
            options(driver="file", node_name="d", filename=str(image), read_only=True)
        )
        reader = BlockBackend("reader", READ)
        reader.attach(graph, node)
        await reader.detach()
        await graph.close()

    run(main)


@needs_qemu_io
@pytest.mark.usefixtures("running_qemu_io")
def test_force_share_unshares_nothing(image: Path) -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(
            options(
                driver="file", node_name="d", filename=str(image), read_only=True, force_share=True
            )
        )
        reader = BlockBackend("reader", READ, shared_outside=Perm.NONE)
        reader.attach(graph, node)
        assert locked_bytes(image) == {100, 101}
        await reader.detach()
        await graph.close()

    run(main)


def test_a_guard_keeps_others_out_and_lets_its_friends_in(
    two_files: tuple[ImageLock, ImageLock], image: Path
) -> None:
    """From the holder's end to the next holder's beginning nobody else gets in."""
    first, second = two_files
    first.acquire(RW, EXCLUSIVE)
    guard = first.make_guard()
    first.acquire(Perm.NONE, Perm.ALL)
    assert locked_bytes(image) == {100, 101, 201, 203}
    with pytest.raises(ImageLockedError):
        second.acquire(RW, EXCLUSIVE)
    guard.trust()
    second.acquire(RW, EXCLUSIVE)
    fd = os.open(image, os.O_RDWR)
    try:
        third = ImageLock(fd, "x")
        with pytest.raises(ImageLockedError):  # the guard is no pass to what somebody else holds
            third.acquire(RW, EXCLUSIVE)
    finally:
        os.close(fd)
    guard.close()
    assert locked_bytes(image) == {100, 101, 201, 203}
    second.acquire(Perm.NONE, Perm.ALL)
    assert locked_bytes(image) == set()
