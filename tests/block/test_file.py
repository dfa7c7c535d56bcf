# SPDX-License-Identifier: Apache-2.0
"""The `file` and `host_device` drivers: real files, both engines, injected faults."""

# ruff: noqa: ASYNC240 -- looking at the file from outside is the test

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from tests.descriptors import open_fds
from tests.unsynced import directory_on_disk, unsynced_bytes
from vhostblk.block.drivers import direct
from vhostblk.block.drivers.posix import PosixNode
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion, drive
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.engine import load
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture(params=["io_uring", "threads"])
def aio(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return path


async def open_file(
    path: Path, perm: Perm = RW | Perm.RESIZE, **members: Any
) -> tuple[Graph, PosixNode, BlockBackend]:
    graph = Graph()
    node = await graph.add(options(driver="file", node_name="disk", filename=str(path), **members))
    assert isinstance(node, PosixNode)
    backend = BlockBackend("test", perm)
    backend.attach(graph, node)
    return graph, node, backend


async def close(graph: Graph, backend: BlockBackend) -> None:
    await backend.detach()
    await graph.close()


@pytest.mark.parametrize("o_direct", [False, True])
def test_reads_and_writes(image: Path, aio: str, o_direct: bool) -> None:
    async def main() -> None:
        graph, _, backend = await open_file(image, aio=aio, cache={"direct": o_direct})
        content = bytearray(image.read_bytes())
        for offset, data in ((0, b"a" * 4096), (5, b"b" * 10), (MIB - 700, b"c" * 700)):
            await write_bytes(backend, offset, data)
            content[offset : offset + len(data)] = data
        for offset, length in ((0, 8192), (3, 1), (MIB - 5000, 5000), (0, MIB)):
            assert await read_bytes(backend, offset, length) == content[offset : offset + length]
        await backend.flush()
        assert image.read_bytes() == content
        await close(graph, backend)

    run(main)


def test_many_requests_at_once(image: Path, aio: str) -> None:
    """More than the engine has slots."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, aio_max_batch=7)
        node._inline = None
        finished = asyncio.get_running_loop().create_future()
        count, failures = 3000, []

        def on_done(_: object, error: BaseException | None) -> None:
            failures.extend([error] if error else [])
            backend.end()
            if not backend.in_flight:
                finished.set_result(None)

        iovs = [IoVec.allocate(256) for _ in range(count)]
        backend.begin(count)
        for number, iov in enumerate(iovs):
            drive(backend.preadv(number * 256 % MIB, iov), on_done)
        await finished
        assert not failures
        assert {iov.to_bytes() for iov in iovs} == {bytes(range(256))}
        await close(graph, backend)

    run(main)


@pytest.mark.parametrize("length", [4096, 128 << 10])
def test_segments_from_places_of_their_own(image: Path, aio: str, length: int) -> None:
    async def main() -> None:
        graph, _, backend = await open_file(image, aio=aio)
        content = image.read_bytes()
        os.posix_fadvise(os.open(image, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = [MIB - length, 4096, 123]
        for _ in range(2):  # from the disk, and from the page cache
            iov = IoVec.from_buffers([bytearray(length) for _ in offsets])
            assert not any(await backend.edge.pread_segments(offsets, iov))
            found = [iov.segment(index).to_bytes() for index in range(len(offsets))]
            assert found == [content[offset : offset + length] for offset in offsets]
        await close(graph, backend)

    run(main)


def test_zeroes_are_known_of_several_places(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(MIB)
        os.pwrite(file.fileno(), b"x", 100_000)
        os.pwrite(file.fileno(), b"x", 600_000)

    async def main() -> None:
        graph, node, backend = await open_file(path)
        places = list(range(0, MIB, 16384))
        found = backend.edge.known_zeroes([*places, MIB], 16384)
        assert found == [node.known_zero(place, 16384) for place in places] + [True]
        assert found.count(False) == 2
        await close(graph, backend)

    run(main)


def test_write_zeroes_and_discard(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, _, backend = await open_file(image, aio=aio, discard="unmap")
        await backend.pwrite_zeroes(100, 5000)
        await backend.pwrite_zeroes(65536, 65536, WriteFlags.MAY_UNMAP)
        await backend.pdiscard(262144, 65536)
        assert await read_bytes(backend, 99, 5002) == b"\x63" + bytes(5000) + b"\xec"
        assert await read_bytes(backend, 65536, 65536) == bytes(65536)
        hole = await backend.block_status(65536, MIB)
        assert (hole.length, hole.status & (BlockStatus.ZERO | BlockStatus.DATA)) == (
            65536,
            BlockStatus.ZERO,
        )
        data = await backend.block_status(131072, MIB)
        assert (data.length, data.offset) == (131072, 131072)
        assert data.status & BlockStatus.DATA
        await close(graph, backend)

    run(main)


def test_write_zeroes_without_fallocate_falls_back(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        node._modes.clear()
        await backend.pwrite_zeroes(1000, 300000)
        content = image.read_bytes()
        assert content[1000:301000] == bytes(300000)
        assert content[999] == 999 % 256
        await close(graph, backend)

    run(main)


def test_truncate_is_reported(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, _, backend = await open_file(image, aio=aio)
        sizes: list[int] = []
        backend.on_resize(lambda: sizes.append(backend.size))
        await backend.truncate(2 * MIB)
        await backend.truncate(MIB)
        assert sizes == [2 * MIB, MIB]
        assert image.stat().st_size == MIB
        await close(graph, backend)

    run(main)


def test_a_partial_last_sector_reads_as_zeroes(tmp_path: Path, aio: str) -> None:
    async def main() -> None:
        path = tmp_path / "odd"
        path.write_bytes(b"x" * 700)
        graph, _, backend = await open_file(path, aio=aio)
        assert backend.size == 1024
        assert await read_bytes(backend, 512, 512) == b"x" * 188 + bytes(324)
        await close(graph, backend)

    run(main)


# Faults.


class Faults:
    """Stands before an engine and makes chosen operations fail or fall short."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.results: list[int | Callable[[int], int]] = []
        #: The error that fallocate returns, if not 0.
        self.fallocate_fails = 0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _next(self) -> int | None:
        self.calls += 1
        return self.results.pop(0) if self.results else None  # type: ignore[return-value]

    def _answer(self, method: Any, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        planned = self._next()
        if planned is None:
            return method(fd, iov, offset)  # type: ignore[no-any-return]
        if planned > 0:
            iov = iov.slice(0, min(planned, iov.nbytes))
            return method(fd, iov, offset)  # type: ignore[no-any-return]
        return finished(planned)

    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._answer(self._engine.preadv, fd, iov, offset)

    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        return self._answer(self._engine.pwritev, fd, iov, offset)

    def fdatasync(self, fd: int) -> Completion[int]:
        planned = self._next()
        return self._engine.fdatasync(fd) if planned is None else finished(planned)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        if self.fallocate_fails:
            return finished(self.fallocate_fails)
        return self._engine.fallocate(fd, mode, offset, length)  # type: ignore[no-any-return]


def finished(result: int) -> Completion[int]:
    completion: Completion[int] = Completion()
    asyncio.get_running_loop().call_soon(completion.set_result, result)
    return completion


def with_faults(node: PosixNode) -> Faults:
    faults = Faults(node._aio)
    node._inline = None
    node._aio = faults  # type: ignore[assignment]
    return faults


async def close_faulty(graph: Graph, node: PosixNode, backend: BlockBackend) -> None:
    node._aio = node._aio._engine  # type: ignore[attr-defined]
    await close(graph, backend)


def test_short_transfers_and_eagain_are_continued(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        faults.results = [1, 300, -errno.EAGAIN, -errno.EINTR, 5]
        assert await read_bytes(backend, 256, 1024) == bytes(range(256)) * 4
        assert faults.calls == 6
        faults.results = [1, -errno.EAGAIN, 3]
        await write_bytes(backend, 0, b"0123456789")
        assert image.read_bytes()[:10] == b"0123456789"
        await close_faulty(graph, node, backend)

    run(main)


def test_errors_reach_the_caller(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        for results, expected in (
            ([-errno.EIO], errno.EIO),
            ([512, -errno.EIO], errno.EIO),
            ([-errno.ENOSPC], errno.ENOSPC),
            ([0], errno.ENOSPC),
        ):
            faults.results = list(results)
            with fails_with(expected):
                await write_bytes(backend, 0, bytes(1024))
        await close_faulty(graph, node, backend)

    run(main)


def test_a_failed_flush_poisons_all_later_ones(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        for _ in range(2):
            with fails_with(errno.EIO):
                await backend.flush()
        assert faults.calls == 1
        await close_faulty(graph, node, backend)

    run(main)


def test_a_failed_flush_is_known_to_both_lanes(image: Path, aio: str) -> None:
    """The map has the state of flushes; whoever flushes by the map reads it, and sets it."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        extents = backend.extent_map()
        assert extents is not None
        assert extents.sync is not None
        await backend.flush()
        extents.sync.error = errno.ENOSPC
        with fails_with(errno.ENOSPC):
            await backend.flush()
        extents.sync.error = 0
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        with fails_with(errno.EIO):
            await backend.flush()
        assert extents.sync.error == errno.EIO
        await close_faulty(graph, node, backend)

    run(main)


class HeldSyncs:
    """Stands before an engine; each fdatasync ends when the test says so."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.started: list[Completion[int]] = []
        self.begun = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def fdatasync(self, _fd: int) -> Completion[int]:
        self.started.append(Completion())
        self.begun.set()
        return self.started[-1]


async def turns(count: int = 5) -> None:
    """Let the loop do what it can do at once."""
    for _ in range(count):
        await asyncio.sleep(0)


def held_syncs(node: PosixNode) -> HeldSyncs:
    node._aio = held = HeldSyncs(node._aio)  # type: ignore[assignment]
    return held


def test_flush_fails_beside_the_one_that_gets_the_error(image: Path) -> None:
    """The kernel tells one caller of fdatasync(2) of lost data, and the other one nothing."""

    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        flushes = [asyncio.ensure_future(backend.flush()) for _ in range(3)]
        await turns()
        for number, result in enumerate((-errno.EIO, 0, 0)):
            if number < len(held.started):
                held.started[number].set_result(result)
                await turns()
        outcomes = await asyncio.gather(*flushes, return_exceptions=True)
        assert [getattr(each, "errno", None) for each in outcomes] == [errno.EIO] * 3
        await close_faulty(graph, node, backend)

    run(main)


def test_flushes_that_wait_share_the_next_call(image: Path) -> None:
    """None takes part in a call that began before it did."""

    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        first, *others = [asyncio.ensure_future(backend.flush()) for _ in range(4)]
        await turns()
        assert len(held.started) == 1
        held.started[0].set_result(0)
        await turns()
        assert first.done()
        assert not any(each.done() for each in others)
        held.started[1].set_result(0)
        await asyncio.gather(*others)
        assert len(held.started) == 2
        await close_faulty(graph, node, backend)

    run(main)


def test_error_of_a_cancelled_flush_is_noted(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        flush = asyncio.ensure_future(backend.flush())
        await turns()
        flush.cancel()
        await turns()
        held.started[0].set_result(-errno.EIO)
        with pytest.raises(asyncio.CancelledError):
            await flush
        later = asyncio.ensure_future(backend.flush())
        await turns()
        for completion in held.started[1:]:
            completion.set_result(0)
        with fails_with(errno.EIO):
            await later
        await close_faulty(graph, node, backend)

    run(main)


def started(coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
    """Run a coroutine without a task: one that waits for ever doesn't keep the loop from ending."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(_result: None, error: BaseException | None) -> None:
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    drive(coroutine, note)
    return outcome


@pytest.mark.parametrize("fails", [True, False])
def test_flush_waits_for_that_of_an_iothread(image: Path, fails: bool) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image)
        extents = backend.extent_map()
        assert extents is not None
        assert extents.sync is not None
        compiled = load()
        assert compiled is not None
        _, lib = compiled
        handle = extents.sync.handle
        descriptors = len(open_fds())
        for _ in range(2):
            held = held_syncs(node)
            assert lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            flush = started(backend.flush())
            await turns()
            assert not held.started
            assert not lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            extents.sync.error = errno.EIO if fails else 0
            await asyncio.to_thread(lib.vb_sync_end, handle, lib.VB_SYNC_ENGINE)
            if fails:
                with fails_with(errno.EIO):
                    await asyncio.wait_for(flush, 20)
                assert not held.started
            else:
                await asyncio.wait_for(held.begun.wait(), 20)
                assert not lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
                held.started[0].set_result(0)
                await asyncio.wait_for(flush, 20)
            node._aio = held._engine
            assert lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            lib.vb_sync_end(handle, lib.VB_SYNC_ENGINE)
        assert len(open_fds()) == descriptors + 1
        await close(graph, backend)
        assert len(open_fds()) < descriptors

    run(main)


def test_error_that_a_preallocation_gets_is_noted(image: Path, aio: str) -> None:
    """It ends with a flush of the file that is in use."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        with pytest.raises(OSError, match="Could not flush file to disk"):
            await node.grow(2 * MIB, PreallocMode.FULL)
        assert node.size == MIB
        with fails_with(errno.EIO):
            await backend.flush()
        await close_faulty(graph, node, backend)

    run(main)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("cache_on", [True, False])
def test_what_is_flushed_is_on_the_disk(
    tmp_path: Path, aio: str, direct: bool, cache_on: bool
) -> None:
    async def main(path: Path) -> None:
        graph, _, backend = await open_file(path, aio=aio, cache={"direct": direct})
        backend.enable_write_cache = cache_on
        await write_bytes(backend, 4096, b"x" * 8192)
        await backend.pwrite_zeroes(65536, 4096)
        await write_bytes(backend, MIB - 512, b"x" * 512)
        if cache_on:
            await backend.flush()
        assert unsynced_bytes(path) == 0
        await close(graph, backend)

    with directory_on_disk(tmp_path) as directory:
        path = directory / "disk.img"
        path.write_bytes(b"a" * MIB)
        os.sync()
        run(lambda: main(path))


@pytest.mark.parametrize("direct", [False, True])
def test_every_flush_asks_the_kernel(image: Path, aio: str, direct: bool) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, cache={"direct": direct})
        faults = with_faults(node)
        await backend.flush()
        await backend.flush()
        assert faults.calls == 2
        await close_faulty(graph, node, backend)

    run(main)


UNKNOWN = [-errno.EOPNOTSUPP, -errno.ENOSYS, -errno.ENODEV]


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EPERM])
def test_zeroes_that_fail_are_no_zeroes(image: Path, aio: str, code: int, unmap: bool) -> None:
    flags = WriteFlags.MAY_UNMAP if unmap else WriteFlags.NONE

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, discard="unmap")
        faults = with_faults(node)
        faults.fallocate_fails = -code
        with fails_with(code):
            await backend.pwrite_zeroes(4096, 4096, flags)
        assert image.read_bytes() == bytes(range(256)) * (MIB // 256)
        faults.fallocate_fails = 0
        await backend.pwrite_zeroes(4096, 4096, flags)
        assert image.read_bytes()[4096:8192] == bytes(4096)
        await close_faulty(graph, node, backend)

    run(main)


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("code", UNKNOWN)
def test_zeroes_that_the_file_system_does_not_know_are_written(
    image: Path, aio: str, code: int, unmap: bool
) -> None:
    """The first request is not lost, either."""
    flags = WriteFlags.MAY_UNMAP if unmap else WriteFlags.NONE

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, discard="unmap")
        faults = with_faults(node)
        for start in (4096, 16384):
            faults.fallocate_fails = code if start == 4096 else 0
            await backend.pwrite_zeroes(start, 4096, flags)
            assert image.read_bytes()[start : start + 4096] == bytes(4096)
        await close_faulty(graph, node, backend)

    run(main)


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("unknown", [False, True])
def test_zeroes_over_the_end_of_the_file(image: Path, aio: str, unmap: bool, unknown: bool) -> None:
    """The request of a format above; `unknown`: the file system has no fallocate."""
    flags = WriteFlags.MAY_UNMAP if unmap else WriteFlags.NONE

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, discard="unmap")
        top = await graph.add(options(driver="raw", node_name="top", file="disk", discard="unmap"))
        if unknown:
            with_faults(node).fallocate_fails = UNKNOWN[0]
        edge = top.children["file"]
        edge.perm |= RW | Perm.RESIZE
        edge.refresh()
        await edge.pwrite_zeroes(MIB - 4096, 12288, flags)
        content = image.read_bytes()
        assert content[: MIB - 4096] == (bytes(range(256)) * (MIB // 256))[: MIB - 4096]
        assert content[MIB - 4096 :] == bytes(12288)
        if unknown:
            node._aio = node._aio._engine  # type: ignore[attr-defined]
        await close(graph, backend)

    run(main)


# Opening.


async def open_error(**members: Any) -> str:
    graph = Graph()
    with pytest.raises(BlockError) as caught:
        await graph.add(options(node_name="disk", **members))
    await graph.close()
    return str(caught.value)


def test_messages_of_opening(tmp_path: Path, image: Path) -> None:
    async def main() -> None:
        missing = str(tmp_path / "missing")
        fifo = str(tmp_path / "fifo")
        os.mkfifo(fifo)
        for members, message in (
            (
                {"driver": "file", "filename": missing},
                f"Could not open '{missing}': No such file or directory",
            ),
            (
                {"driver": "file", "filename": str(tmp_path)},
                f"Could not open '{tmp_path}': Is a directory",
            ),
            (
                {"driver": "file", "filename": fifo, "read_only": True},
                f"'file' driver requires '{fifo}' to be a regular file",
            ),
            (
                {"driver": "file", "filename": "/dev/null"},
                "'file' driver requires '/dev/null' to be a regular file",
            ),
            (
                {"driver": "host_device", "filename": str(image)},
                f"'host_device' driver requires '{image}' to be either a character or block device",
            ),
            (
                {"driver": "file", "filename": str(image), "aio": "native"},
                (
                    "aio=native was specified, but it requires cache.direct=on, which was not "
                    "specified."
                ),
            ),
            ({"driver": "file", "filename": "a\0b"}, "Could not open 'a\0b': embedded null byte"),
        ):
            assert await open_error(**members) == message

    before = open_fds()
    run(main)
    assert open_fds() <= before


def test_auto_read_only_reopens_for_the_first_writer(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(
            image, Perm.CONSISTENT_READ, aio=aio, auto_read_only=True
        )
        fd = node.fd
        assert flags_of(fd) == os.O_RDONLY
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        assert (node.fd, flags_of(fd)) == (fd, os.O_RDWR)
        await write_bytes(writer, 0, b"hello")
        assert image.read_bytes()[:5] == b"hello"
        second = BlockBackend("second", RW)
        second.attach(graph, node)
        await second.detach()
        assert flags_of(fd) == os.O_RDWR
        await writer.detach()
        assert (node.fd, flags_of(fd)) == (fd, os.O_RDONLY)
        assert await read_bytes(backend, 0, 5) == b"hello"
        writer.attach(graph, node)  # and once more
        await write_bytes(writer, 0, b"again")
        await writer.detach()
        await close(graph, backend)
        assert image.read_bytes()[:5] == b"again"

    run(main)


def test_without_auto_read_only_the_file_stays_open_for_writing(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ)
        assert flags_of(node.fd) == os.O_RDWR
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        await writer.detach()
        assert flags_of(node.fd) == os.O_RDWR
        await close(graph, backend)

    run(main)


def test_a_writer_leaves_a_file_that_was_replaced(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ, auto_read_only=True)
        writer = BlockBackend("writer", RW)
        writer.attach(graph, node)
        image.rename(image.with_suffix(".old"))
        image.write_bytes(bytes(MIB))
        await writer.detach()
        assert flags_of(node.fd) == os.O_RDWR
        assert await read_bytes(backend, 0, 5) == image.with_suffix(".old").read_bytes()[:5]
        await close(graph, backend)

    run(main)


def test_a_replaced_file_is_not_reopened(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, Perm.CONSISTENT_READ, auto_read_only=True)
        image.rename(image.with_suffix(".old"))
        image.write_bytes(bytes(MIB))
        writer = BlockBackend("writer", RW)
        with pytest.raises(BlockError, match="has been replaced"):
            writer.attach(graph, node)
        assert flags_of(node.fd) == os.O_RDONLY
        await close(graph, backend)

    run(main)


def flags_of(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def test_io_uring_forbidden(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VHOSTBLK_IO_URING", "off")
    monkeypatch.setattr("vhostblk.block.aio.engine._fallback_logged", False)

    async def main() -> None:
        for _ in range(2):
            graph, node, backend = await open_file(image)
            assert node._aio.kind.value == "threads"
            await close(graph, backend)
        error = await open_error(driver="file", filename=str(image), aio="io_uring")
        assert error.startswith("aio=io_uring: io_uring is not available: ")

    run(main)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("aio", ["threads"])
def test_without_the_compiled_engine(
    image: Path, aio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vhostblk import engine

    monkeypatch.setenv("VHOSTBLK_ENGINE", "off")
    engine.load.cache_clear()
    try:
        test_reads_and_writes(image, aio, o_direct=False)
        test_write_zeroes_and_discard_again(image)
    finally:
        engine.load.cache_clear()


def test_write_zeroes_and_discard_again(image: Path) -> None:
    image.write_bytes(bytes(range(256)) * (MIB // 256))
    test_write_zeroes_and_discard(image, "threads")


def test_cancelling_a_task_waits_for_the_kernel(image: Path, aio: str) -> None:
    """The buffer must not be given back while the kernel may still write to it."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        node._inline = None
        iov = IoVec.allocate(4096)
        task = asyncio.ensure_future(backend.preadv(0, iov))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert iov.to_bytes() == bytes(range(256)) * 16
        await close(graph, backend)

    run(main)


def test_alignment_is_found_by_reading_where_the_kernel_does_not_tell(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(image, os.O_RDONLY | os.O_DIRECT)
    told = direct.probe_alignment(fd)
    monkeypatch.setattr(direct, "_ask_statx", lambda fd: 0)
    assert direct.probe_alignment(fd) == told
    os.close(fd)


# Block devices.


@pytest.fixture
def loop_device(image: Path) -> Iterator[str]:
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(image)], capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"losetup: {error}")
    if made.returncode:
        pytest.skip(f"losetup: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("o_direct", [False, True])
def test_host_device(loop_device: str, aio: str, o_direct: bool) -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(
            options(
                driver="host_device",
                node_name="disk",
                filename=loop_device,
                aio=aio,
                discard="unmap",
                cache={"direct": o_direct},
            )
        )
        backend = BlockBackend("test", RW)
        backend.attach(graph, node)
        assert backend.size == MIB
        assert backend.limits.request_alignment == (512 if o_direct else 1)
        assert not node.erases_securely
        assert (node.has_lifetime, await node.lifetime()) == (False, None)
        with fails_with(errno.ENOTSUP):
            await backend.psecure_erase(0, 4096)
        await write_bytes(backend, 1000, b"x" * 100)
        assert await read_bytes(backend, 999, 102) == b"\xe7" + b"x" * 100 + b"\x4c"
        await backend.pwrite_zeroes(4096, 8192)
        await backend.pwrite_zeroes(65536, 65536, WriteFlags.MAY_UNMAP)
        await backend.pdiscard(131072, 65536)
        assert await read_bytes(backend, 4096, 8192) == bytes(8192)
        assert await read_bytes(backend, 65536, 65536) == bytes(65536)
        await backend.flush()
        await close(graph, backend)

    run(main)
