# SPDX-License-Identifier: Apache-2.0
"""A host cluster is reused only when no write to it is in flight any more, in both lanes.

An overwrite is in flight when the guest discards the same cluster, flushes, and writes elsewhere;
that write would get the same host cluster.
"""

from __future__ import annotations

import asyncio
import ctypes
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.tools import check, content, qemu_img, read, run, write
from tests.frontend.blk import BlkDriver, range_segments
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import loop
from tests.frontend.memory import MIB, Memory
from vhostblk.block.io.completion import Completion
from vhostblk.daemon import Daemon
from vhostblk.exports.vhost_user_blk.export import VhostUserBlkExport
from vhostblk.virtio_blk.express import ExpressQueue
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.frontend.loop_thread import LoopThread
    from vhostblk.block.io.iovec import IoVec

__all__ = ["loop"]  # a fixture

SIZE = 8 << 20
LENGTH = 512 << 10
PATIENCE = 30.0


def test_the_python_lane_settles(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    file = RecordingNode(path.read_bytes())

    async def main() -> None:
        async with opened_on(file, discard="unmap") as (node, backend):
            await write(backend, 0, b"a" * LENGTH)
            await backend.flush()
            file.holds = lambda _, data: data.startswith(b"late")
            held = asyncio.ensure_future(write(backend, 0, b"late" * (LENGTH // 4)))
            await _turns_until(lambda: bool(file.held))
            await backend.pdiscard(0, LENGTH)
            flushing = asyncio.ensure_future(backend.flush())
            other = asyncio.ensure_future(write(backend, MIB, b"b" * LENGTH))
            publisher = node._image.publisher
            await _turns_until(
                lambda: publisher._settled is not None or (flushing.done() and other.done())
            )
            file.held.pop().set_result(None)
            await asyncio.gather(held, flushing, other)
            assert await read(backend, MIB, LENGTH) == b"b" * LENGTH

    run(main())


class LateReads(RecordingNode):
    """Holds up reads of one place."""

    late = -1

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if offset == self.late:
            let_go: Completion[None] = Completion()
            self.held.append(let_go)
            await let_go
        await super().preadv(offset, iov)


def test_a_read_gets_what_was_there_when_it_began(tmp_path: Path) -> None:
    path, length = tmp_path / "disk.qcow2", 64 << 10
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    file = LateReads(path.read_bytes())

    async def main() -> None:
        async with opened_on(file, discard="unmap") as (node, backend):
            await write(backend, 0, b"a" * length)
            await backend.flush()
            file.late = (await node.block_status(0, 1)).offset
            reading = asyncio.ensure_future(read(backend, 0, length))
            await _turns_until(lambda: bool(file.held))
            await backend.pdiscard(0, length)
            flushing = asyncio.ensure_future(backend.flush())
            other = asyncio.ensure_future(write(backend, MIB, b"b" * length))
            publisher = node._image.publisher
            await _turns_until(
                lambda: publisher._settled is not None or (flushing.done() and other.done())
            )
            file.held.pop().set_result(None)
            _, _, seen = await asyncio.gather(flushing, other, reading)
            assert seen == b"a" * length
            file.late = -1
            assert await read(backend, MIB, length) == b"b" * length

    run(main())


async def _turns_until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until a condition holds; nothing waits for time to pass."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("nothing goes on")


class _Worker:
    """The only thread that does the engine's file I/O; it can be stopped."""

    def __init__(self) -> None:
        (self._thread,) = (thread for thread in _threads() if _name(thread) == "worker")

    @contextmanager
    def stopped(self) -> Iterator[Callable[[], None]]:
        """Stop it; yield a function that resumes it."""
        _wait_for(self._is_idle)
        _libc.prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
        command = [sys.executable, "-m", "integration.qcow2.stop_thread", str(self._thread)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stopper:
            assert stopper.stdout is not None
            assert stopper.stdin is not None
            try:
                assert stopper.stdout.readline() == b"stopped\n"
                yield stopper.stdin.close
            finally:
                stopper.stdin.close()
        assert stopper.returncode == 0

    def _is_idle(self) -> bool:
        """Return whether it waits for work."""
        return Path(f"/proc/self/task/{self._thread}/syscall").read_bytes().startswith(_FUTEX)


_libc = ctypes.CDLL(None, use_errno=True)
#: prctl(2); the number of the system call futex(2).
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
_FUTEX = {"x86_64": b"202 ", "aarch64": b"98 "}[platform.machine()]


def _threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


def _name(thread: int) -> str:
    return Path(f"/proc/self/task/{thread}/comm").read_text().strip()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_express_lane_settles(
    tmp_path: Path, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOSTBLK_LANE", "express")
    monkeypatch.setenv("VHOSTBLK_IO_URING", "off")
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    daemon = _daemon(path, tmp_path / "e.sock")
    loop.run(daemon.__aenter__())
    memory = Memory()
    try:
        with BlkDriver(Connection.connect(tmp_path / "e.sock"), memory) as driver:
            driver.write(0, b"a" * LENGTH)
            driver.flush()
            assert driver.read(0, LENGTH) == b"a" * LENGTH
            export = daemon._exports["e"].export
            assert isinstance(export, VhostUserBlkExport)
            queue = export.device.queues.running[0]
            assert isinstance(queue, ExpressQueue)
            _race(driver, queue, loop, _Worker())
            assert driver.read(MIB, LENGTH) == b"b" * LENGTH
    finally:
        loop.run(daemon.close())
        memory.close()
    check(path)
    assert content(path, tmp_path / "raw")[MIB : MIB + LENGTH] == b"b" * LENGTH


def _daemon(path: Path, socket: Path) -> Daemon:
    # The iothread itself does buffered writes, and leaves direct ones to the worker.
    direct = {"direct": True}
    file = {"driver": "file", "node-name": "file", "filename": str(path), "cache": direct}
    return Daemon(
        objects=[{"qom-type": "iothread", "id": "io", "thread-pool-max": 1}],
        blockdevs=[
            file,
            {"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap"},
        ],
        exports=[
            {
                "type": "vhost-user-blk",
                "id": "e",
                "node-name": "disk",
                "addr": {"type": "unix", "path": str(socket)},
                "writable": True,
                "iothread": "io",
            }
        ],
    )


def _race(driver: BlkDriver, queue: ExpressQueue, loop: LoopThread, worker: _Worker) -> None:
    """Let an overwrite end after its cluster was discarded, and perhaps reused."""
    done: list[Any] = []

    def submit(kind: RequestType, offset: int = 0, data: bytes = b"") -> int:
        head = driver.submit(kind, offset, data_out=[data] if data else []).head
        driver.kick()
        return head

    def is_done(*heads: int) -> bool:
        done.extend(driver.poll())
        return set(heads) <= {request.head for request, _ in done}

    async def in_flight() -> int:
        return queue.in_flight

    async def settles() -> bool:
        return bool(queue._settled)

    with worker.stopped() as go_on:
        submit(RequestType.OUT, 0, b"late" * (LENGTH // 4))
        _wait_for(lambda: loop.run(in_flight()) == 1)
        discard = submit(RequestType.DISCARD, data=range_segments([(0, LENGTH)], 0))
        _wait_for(lambda: is_done(discard))
        flush = submit(RequestType.FLUSH)
        other = submit(RequestType.OUT, MIB, b"b" * LENGTH)
        _wait_for(lambda: loop.run(settles()) or is_done(flush, other))
        go_on()
        done.extend(driver.drain())
    assert len(done) == 4
    assert all(request.status == 0 for request, _ in done)
