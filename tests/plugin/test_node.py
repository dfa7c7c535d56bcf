# SPDX-License-Identifier: Apache-2.0
"""What becomes of a driver's answers, faults and omissions."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.block.support import fails_with, options, read_bytes, run, write_bytes
from tests.plugin.support import Memory, MemoryOptions, SyncMemory, opened
from vhostblk.block.drivers.file import FileNode
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import drive
from vhostblk.block.io.iovec import IoVec
from vhostblk.plugin import BlockdevRef, Driver, DriverError, Extent, Options, SyncDriver
from vhostblk.schema import plugins

READ = Perm.CONSISTENT_READ
SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _no_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.DRIVERS, "registered", {})


def use(driver: Any) -> dict[str, Any]:
    """Register a driver; return the option that names it."""
    plugins.register(driver)
    return {"driver": driver.options_type.__struct_config__.tag}


class ReadOnly(Driver[MemoryOptions]):
    """The least that a driver may have."""

    options_type = MemoryOptions

    def size(self) -> int:
        return self.options.size

    async def read(self, offset: int, length: int) -> Any:
        return np.full(length // 8, offset, "<u8")


@pytest.mark.parametrize("driver", [Memory, SyncMemory])
def test_what_a_driver_lacks_is_emulated(driver: Any) -> None:
    async def main() -> None:
        async with opened(**use(driver), discard="unmap") as (node, backend):
            await write_bytes(backend, 700, b"x" * 3000)  # read, changed, written
            assert await read_bytes(backend, 0, 4096) == bytes(700) + b"x" * 3000 + bytes(396)
            await backend.pwrite_zeroes(1024, 1024)
            assert await read_bytes(backend, 1024, 1024) == bytes(1024)
            await backend.pdiscard(0, 4096)
            await backend.flush()
            extent = await backend.block_status(0, 8192)
            assert (extent.length, extent.status) == (
                8192,
                BlockStatus.DATA | BlockStatus.ALLOCATED,
            )
            long = bytes(range(256)) * (3 << 11)  # comes in parts
            assert len(long) > node.limits.max_transfer
            with fails_with(errno.EIO):
                await write_bytes(backend, 0, long)
            await write_bytes(backend, 0, long[: 1 << 20])
            assert await read_bytes(backend, 0, 1 << 20) == long[: 1 << 20]

    run(main)


def test_a_driver_without_write_is_read_only() -> None:
    async def main() -> None:
        async with opened(READ, **use(ReadOnly)) as (node, backend):
            assert node.read_only
            assert await read_bytes(backend, 512, 512) == (512).to_bytes(8, "little") * 64
            with fails_with(errno.EPERM):
                await write_bytes(backend, 0, bytes(512))
        with pytest.raises(BlockError, match="Block node is read-only"):
            async with opened(**use(ReadOnly)):
                pass

    run(main)


class Strange(ReadOnly):
    """Answers as it is told to."""

    answer: ClassVar[Any] = b""

    async def read(self, offset: int, length: int) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class StrangeInThread(SyncDriver[MemoryOptions]):
    """The same."""

    options_type = MemoryOptions

    def size(self) -> int:
        return self.options.size

    def read(self, offset: int, length: int) -> Any:
        if isinstance(Strange.answer, BaseException):
            raise Strange.answer
        return Strange.answer


@pytest.mark.parametrize("driver", [Strange, StrangeInThread])
@pytest.mark.parametrize(
    ("answer", "code", "logged"),
    [
        (b"short", errno.EIO, "returned 5 bytes, not 512"),
        (bytes(513), errno.EIO, "returned 513 bytes, not 512"),
        (None, errno.EIO, "returned NoneType, which is not bytes-like"),
        ("x" * 512, errno.EIO, "returned str, which is not bytes-like"),
        (np.zeros(1024, "u1")[::2], errno.EIO, "returned data that is not contiguous"),
        (KeyError("bug"), errno.EIO, "KeyError: 'bug'"),
        (StopIteration(), errno.EIO, "StopIteration"),
        (SystemExit(3), errno.EIO, "SystemExit: 3"),
        (KeyboardInterrupt(), errno.EIO, "KeyboardInterrupt"),
        (asyncio.CancelledError(), errno.EIO, "CancelledError"),
        (OSError(errno.ENOSPC, "full up"), errno.ENOSPC, "full up"),
        (OSError("no errno"), errno.EIO, "no errno"),
    ],
)
def test_faults_end_in_errors_of_the_request(
    driver: Any,
    answer: Any,
    code: int,
    logged: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Strange, "answer", answer)

    async def main() -> None:
        async with opened(READ, **use(driver)) as (_, backend):
            outcome: list[BaseException | None] = []
            ended = asyncio.Event()

            def done(_result: object, error: BaseException | None) -> None:
                outcome.append(error)
                ended.set()

            drive(backend.preadv(0, IoVec.allocate(512)), done)  # as requests of guests are
            await asyncio.wait_for(ended.wait(), 30)
            assert isinstance(outcome[0], OSError)
            assert outcome[0].errno == code
            monkeypatch.setattr(Strange, "answer", b"y" * 512)
            assert await read_bytes(backend, 0, 512) == b"y" * 512

    with caplog.at_level(logging.ERROR):
        run(main)
    assert "node 'disk': driver 'test-memory': read(0, 512) failed" in caplog.text
    assert "Traceback" in caplog.text
    assert logged in caplog.text


def test_the_log_is_limited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Strange, "answer", b"")

    async def main() -> None:
        async with opened(READ, **use(Strange)) as (_, backend):
            for _ in range(100):
                with fails_with(errno.EIO):
                    await read_bytes(backend, 0, 512)

    run(main)
    assert 0 < len(caplog.records) < 20


@pytest.mark.parametrize("size", [-512, 100, 1.5, None, True, "512", 1 << 63])
def test_sizes_that_make_no_sense_are_refused(size: Any) -> None:
    closed = []

    class Odd(ReadOnly):
        def size(self) -> Any:
            return size

        async def close(self) -> None:
            closed.append(True)

    async def main() -> None:
        with pytest.raises(BlockError) as caught:
            async with opened(READ, **use(Odd)):
                pass
        assert str(caught.value) == (
            f"Driver 'test-memory': size() returned {size!r}, which is not a size in whole sectors"
        )

    run(main)
    assert closed == [True]


def test_a_size_that_changes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Growing(Memory):
        asked = 0

        def size(self) -> int:
            self.asked += 1
            return self.options.size * self.asked

    async def main() -> None:
        async with opened(**use(Growing)) as (node, backend):
            with fails_with(errno.EIO):
                await backend.flush()
            assert node.size == SIZE

    run(main)
    assert "size() changed from 1048576 to 2097152" in caplog.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DriverError("No disk in the drive"), "No disk in the drive"),
        (OSError(errno.ENOENT, "No such file"), "Could not open 'disk': No such file"),
        (ValueError("bug"), "Could not open 'disk': ValueError: bug"),
        (SystemExit(1), "Could not open 'disk': SystemExit: 1"),
    ],
)
@pytest.mark.parametrize("base", [Memory, SyncMemory])
def test_a_driver_that_does_not_open(base: Any, error: BaseException, message: str) -> None:
    def fail(self: object) -> None:
        raise error

    async def fail_later(self: object) -> None:
        raise error

    driver = type("Failing", (base,), {"open": fail_later if base is Memory else fail})

    async def main() -> None:
        with pytest.raises(BlockError) as caught:
            async with opened(READ, **use(driver)):
                pass
        assert str(caught.value) == message

    run(main)


def test_coroutines_may_be_run_in_tasks() -> None:
    class Patient(Memory):
        uses_tasks = True

        async def read(self, offset: int, length: int) -> bytes:
            async with asyncio.timeout(30):
                return await super().read(offset, length)

    async def main() -> None:
        async with opened(READ, **use(Patient)) as (_, backend):
            ended: asyncio.Future[BaseException | None] = asyncio.Future()
            drive(backend.preadv(0, IoVec.allocate(512)), lambda _, error: ended.set_result(error))
            assert await ended is None

    run(main)


class InvertOptions(Options, tag="test-invert", frozen=True):
    """A filter."""

    file: BlockdevRef
    key: int = 0xFF


class Invert(Driver[InvertOptions]):
    """Changes every byte on its way."""

    options_type = InvertOptions
    mutable_options = frozenset({"key"})

    async def open(self) -> None:
        self.below = self.children["file"]

    def size(self) -> int:
        return self.below.size()

    def _change(self, data: bytes) -> bytes:
        return (np.frombuffer(data, "u1") ^ self.options.key).tobytes()

    async def read(self, offset: int, length: int) -> bytes:
        return self._change(await self.below.read(offset, length))

    async def write(self, offset: int, data: bytes) -> None:
        await self.below.write(offset, self._change(data))

    async def flush(self) -> None:
        await self.below.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        return Extent((await self.below.block_status(offset, length)).length)

    async def truncate(self, size: int) -> None:
        await self.below.truncate(size)


class SyncInvert(SyncDriver[InvertOptions]):
    """The same in a thread."""

    options_type = InvertOptions

    def size(self) -> int:
        return self.children["file"].size()

    def read(self, offset: int, length: int) -> bytes:
        data = self.children["file"].read(offset, length)
        return (np.frombuffer(data, "u1") ^ self.options.key).tobytes()

    def write(self, offset: int, data: bytes) -> None:
        changed = (np.frombuffer(data, "u1") ^ self.options.key).tobytes()
        self.children["file"].write(offset, changed)

    def flush(self) -> None:
        self.children["file"].flush()


@pytest.mark.parametrize("driver", [Invert, SyncInvert])
def test_drivers_may_lie_on_other_nodes(driver: Any, tmp_path: Any) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    below = {"driver": "file", "filename": str(image)}

    async def main() -> None:
        async with opened(**use(driver), file=below) as (node, backend):
            assert node.size == SIZE
            await write_bytes(backend, 512, b"\0" * 512)
            assert (
                await read_bytes(backend, 0, 2048) == b"\xff" * 512 + b"\0" * 512 + b"\xff" * 1024
            )
            await backend.flush()
            assert (await backend.block_status(0, 1024)).length > 0

    run(main)
    assert image.read_bytes()[:1024] == bytes(512) + b"\xff" * 512


class NoFlush(Driver[InvertOptions]):
    """Keeps all data in its child, and has no `flush`."""

    options_type = InvertOptions

    def size(self) -> int:
        return self.children["file"].size()

    async def read(self, offset: int, length: int) -> bytes:
        return await self.children["file"].read(offset, length)

    async def write(self, offset: int, data: bytes) -> None:
        await self.children["file"].write(offset, data)


class SyncNoFlush(SyncDriver[InvertOptions]):
    """The same in a thread."""

    options_type = InvertOptions

    def size(self) -> int:
        return self.children["file"].size()

    def read(self, offset: int, length: int) -> bytes:
        return self.children["file"].read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self.children["file"].write(offset, data)


@pytest.mark.parametrize("driver", [Invert, SyncInvert, NoFlush, SyncNoFlush])
def test_flushes_reach_the_nodes_below(
    driver: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    below = {"driver": "file", "filename": str(image)}
    flushed: list[bytes] = []

    async def flush(_node: FileNode) -> None:
        flushed.append(image.read_bytes()[:512])

    monkeypatch.setattr(FileNode, "flush", flush)

    async def main() -> None:
        async with opened(**use(driver), file=below) as (_, backend):
            backend.enable_write_cache = False
            await write_bytes(backend, 0, b"\x01" * 512)
            assert flushed == [image.read_bytes()[:512]]
            await backend.pwrite_zeroes(0, 512)
            assert flushed[1:] == [image.read_bytes()[:512]]

    run(main)


def test_plug_ins_are_resized_and_reopened(tmp_path: Any) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    below = {"driver": "file", "filename": str(image)}

    async def main() -> None:
        async with opened(**use(Invert), file=below) as (node, backend):
            graph = backend._graph
            assert isinstance(graph, Graph)
            await graph.resize(node, 2 * SIZE)
            assert (node.size, image.stat().st_size) == (2 * SIZE, 2 * SIZE)
            members = {"driver": "test-invert", "node_name": "disk", "file": below}
            await graph.reopen([options(**members, key=0x0F)])
            assert await read_bytes(backend, 0, 512) == b"\x0f" * 512
            assert node.strong_options == {"key": 15}

    run(main)


@pytest.mark.parametrize("follows", [False, True])
def test_other_data_below_is_for_drivers_that_say_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    """A filter may be inserted in any case, as it shows the same data."""
    if follows:
        monkeypatch.setattr(Invert, "replaceable_children", frozenset({"file"}))
    for name, size in (("a", SIZE), ("b", 2 * SIZE)):
        (tmp_path / name).write_bytes(name.encode() * size)
    members = {**use(Invert), "node_name": "disk"}
    below = [
        *(file_options(tmp_path / name) for name in ("a", "b")),
        options(driver="copy-on-read", node_name="filter", file="a"),
    ]

    async def main() -> None:
        graph = Graph()
        for each in (*below, options(**members, file="a")):
            await graph.add(each)
        backend = BlockBackend("test", Perm.CONSISTENT_READ | Perm.WRITE)
        backend.attach(graph, graph.find("disk"))
        await graph.reopen([options(**members, file="filter")])
        assert await read_bytes(backend, 0, 512) == bytes([0xFF ^ ord("a")]) * 512
        other = options(**members, file="b")
        if follows:
            await graph.reopen([other])
            assert backend.size == 2 * SIZE
            assert await read_bytes(backend, SIZE, 512) == bytes([0xFF ^ ord("b")]) * 512
        else:
            with pytest.raises(BlockError, match="Cannot replace the data of the file child"):
                await graph.reopen([other])
            assert backend.size == SIZE
        await write_bytes(backend, 0, b"\xff" * 512)
        await backend.detach()
        await graph.close()

    run(main)
    assert (tmp_path / ("b" if follows else "a")).read_bytes()[:513].rstrip(b"ab") == bytes(512)


def file_options(path: Any) -> Any:
    return options(driver="file", node_name=path.name, filename=str(path))


class Slow(SyncMemory):
    """Takes its time, in several threads."""

    threads = 4

    def open(self) -> None:
        import threading

        super().open()
        self.barrier = threading.Barrier(4)

    def read(self, offset: int, length: int) -> bytes:
        self.barrier.wait(30)
        return super().read(offset, length)


def test_threads_work_at_the_same_time() -> None:
    async def main() -> None:
        async with opened(READ, **use(Slow)) as (_, backend):
            reads = (read_bytes(backend, 512 * number, 512) for number in range(8))
            assert await asyncio.gather(*reads) == [bytes(512)] * 8

    run(main)
