# SPDX-License-Identifier: Apache-2.0
"""The `file` and `host_device` drivers: real files, both engines, injected faults."""

# ruff: noqa: ASYNC240 -- looking at the file from outside is the test

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.block.file.support import MIB, close, close_faulty, open_file, with_faults
from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from vhostblk.block.erase import eraser_of
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import drive
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.block.lifetime import lifetime_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
        assert eraser_of(node) is None
        storage = lifetime_of(node)
        assert storage is not None
        assert (storage.has_lifetime, await storage.lifetime()) == (False, None)
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
