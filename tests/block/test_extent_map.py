# SPDX-License-Identifier: Apache-2.0
"""A map never lets others do more than the node's coroutines would, nor anything else."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tests.block.support import RW, MemoryNode, backend_on, read_bytes, run, write_bytes
from vhostblk.block.aio.threads import ThreadsEngine
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.iovec import IoVec
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.schema.options import blockdev_options

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

SIZE = 1 << 20
BLOCK = 4096
READ = Perm.CONSISTENT_READ


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([1 + number % 251]) * 512 for number in range(SIZE // 512)))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("no O_DIRECT here")
    return path


@pytest.fixture(params=[512, 4096])
def loop_device(request: pytest.FixtureRequest, image: Path) -> Iterator[str]:
    command = ["losetup", "--find", "--show", "--sector-size", str(request.param), str(image)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"losetup: {error}")
    if made.returncode:
        pytest.skip(f"losetup: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the descriptors that are flushed, in order; for nodes with aio=threads."""
    found: list[int] = []
    real = ThreadsEngine.fdatasync

    def record(engine: ThreadsEngine, fd: int) -> Any:
        found.append(fd)
        return real(engine, fd)

    monkeypatch.setattr(ThreadsEngine, "fdatasync", record)
    return found


def on(
    *definitions: str, perm: Perm = RW
) -> Callable[[Callable[[BlockBackend], Coroutine[Any, Any, None]]], None]:
    """Run a coroutine function with a user of the last of these nodes."""

    def decorate(test: Callable[[BlockBackend], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            graph = Graph()
            node = None
            for definition in definitions:
                node = await graph.add(blockdev_options(definition))
            assert node is not None
            backend = BlockBackend("test", perm)
            backend.attach(graph, node)
            await test(backend)
            await backend.detach()
            await graph.close()

        run(main)

    return decorate


def map_of(backend: BlockBackend) -> ExtentMap:
    extents = backend.extent_map()
    assert extents is not None
    return extents


async def allowed(coroutine: Coroutine[Any, Any, None]) -> bool:
    try:
        await coroutine
    except OSError:
        return False
    return True


async def check(backend: BlockBackend, flushed: list[int]) -> None:
    """Hold all that a map claims against what the coroutines do."""
    extents = map_of(backend)
    assert extents.size == backend.size
    assert extents.alignment >= backend.limits.request_alignment or not extents.fd
    if extents.kind is ExtentKind.LINEAR:
        for offset in (0, BLOCK, extents.size - BLOCK):
            here = await read_bytes(backend, offset, 512)
            assert _pread(extents.fd, extents.offset + offset) == here
    await _check_flush(backend, extents, flushed)
    await _check_discard(backend, extents)
    data = IoVec.from_buffers([bytearray(b"\xff" * BLOCK)])
    if extents.writable:
        assert backend.writable
        assert await allowed(backend.pwritev(0, data))
    if extents.writable and extents.zero_range:
        for offset in (0, 512):
            assert await allowed(backend.pwrite_zeroes(offset, 512))


def _pread(fd: int, offset: int) -> bytes:
    """Read a sector, whatever the flags of the open file."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        return os.pread(again, 512, offset)
    finally:
        os.close(again)


async def _check_flush(backend: BlockBackend, extents: ExtentMap, flushed: list[int]) -> None:
    flushed.clear()
    await backend.flush()
    match extents.flush:
        case Treatment.FILE:
            assert flushed == [extents.fd]
        case Treatment.IGNORE:
            assert not flushed


async def _check_discard(backend: BlockBackend, extents: ExtentMap) -> None:
    if extents.discard is Treatment.ASK:
        return
    before = await read_bytes(backend, 2 * BLOCK, BLOCK)
    assert await allowed(backend.pdiscard(2 * BLOCK, BLOCK))
    if extents.discard is Treatment.IGNORE and extents.kind is ExtentKind.LINEAR:
        assert await read_bytes(backend, 2 * BLOCK, BLOCK) == before


COMMON = [
    "",
    "discard=unmap",
    "discard=ignore",
    "cache.no-flush=on",
    "cache.direct=on",
    "cache.direct=on,cache.no-flush=on,discard=unmap",
    "detect-zeroes=on",
    "detect-zeroes=unmap,discard=unmap",
    "read-only=on",
    "auto-read-only=on",
    "locking=off,discard=unmap",
]


@pytest.mark.parametrize("perm", [RW, READ], ids=["writer", "reader"])
@pytest.mark.parametrize("common", COMMON)
def test_files(image: Path, flushed: list[int], common: str, perm: Perm) -> None:
    if "read-only=on" in common.split(","):
        perm = READ

    @on(f"file,node-name=f,aio=threads,filename={image},{common}", perm=perm)
    async def _(backend: BlockBackend) -> None:
        await check(backend, flushed)


@pytest.mark.parametrize("perm", [RW, READ], ids=["writer", "reader"])
@pytest.mark.parametrize(
    "window",
    ["", f"offset={BLOCK}", f"offset=512,size={8 * BLOCK}", f"offset=1000,size={SIZE // 2}"],
)
@pytest.mark.parametrize("common", [text for text in COMMON if "locking" not in text])
def test_raw_nodes(image: Path, flushed: list[int], common: str, window: str, perm: Perm) -> None:
    if "read-only=on" in common.split(","):
        perm = READ
    below = f"file.driver=file,file.aio=threads,file.filename={image}"

    @on(",".join(filter(None, ["raw,node-name=r", below, common, window])), perm=perm)
    async def _(backend: BlockBackend) -> None:
        extents = map_of(backend)
        assert extents.writable == (perm == RW and "detect-zeroes" not in common)
        await check(backend, flushed)


@pytest.mark.parametrize(
    "common",
    [
        "file.discard=ignore",
        "file.cache.no-flush=on",
        "file.detect-zeroes=on",
        "file.discard=unmap",
    ],
)
@pytest.mark.parametrize("above", ["discard=ignore", "discard=unmap", "cache.no-flush=on"])
def test_each_node_has_its_say(image: Path, flushed: list[int], above: str, common: str) -> None:
    below = f"file.driver=file,file.aio=threads,file.filename={image}"

    @on(f"raw,node-name=r,{above},{below},{common}")
    async def _(backend: BlockBackend) -> None:
        extents = map_of(backend)
        if "discard=ignore" in above + common or above == "cache.no-flush=on":
            assert extents.discard is Treatment.IGNORE
        if common == "file.cache.no-flush=on":
            assert extents.flush is Treatment.IGNORE
        if common == "file.detect-zeroes=on":
            assert not extents.writable
        await check(backend, flushed)


@pytest.mark.parametrize("common", ["", "discard=unmap", "cache.direct=on", "cache.no-flush=on"])
def test_host_devices(loop_device: str, flushed: list[int], common: str) -> None:
    @on(f"host_device,node-name=d,aio=threads,filename={loop_device},{common}")
    async def _(backend: BlockBackend) -> None:
        extents = map_of(backend)
        assert extents.discard is (Treatment.ASK if common == "discard=unmap" else Treatment.IGNORE)
        assert not extents.zero_range
        await check(backend, flushed)


def test_parts_of_sectors_of_host_devices(loop_device: str) -> None:
    @on(f"host_device,node-name=d,filename={loop_device},discard=unmap")
    async def _(backend: BlockBackend) -> None:
        await write_bytes(backend, 0, b"x" * 4 * BLOCK)
        await backend.pwrite_zeroes(100, BLOCK)
        assert await read_bytes(backend, 0, BLOCK + 200) == (b"x" * 100 + bytes(BLOCK) + b"x" * 100)
        await backend.pdiscard(100, 50)
        await backend.pdiscard(2 * BLOCK + 100, BLOCK)
        assert await read_bytes(backend, 2 * BLOCK, 100) == b"x" * 100
        assert await read_bytes(backend, 3 * BLOCK + 100, BLOCK - 100) == b"x" * (BLOCK - 100)


@pytest.mark.parametrize("perm", [RW, READ], ids=["writer", "reader"])
@pytest.mark.parametrize("common", ["", "read-zeroes=on", "detect-zeroes=on", "discard=unmap"])
def test_null(flushed: list[int], common: str, perm: Perm) -> None:
    @on(f"null-co,node-name=n,size={SIZE},{common}", perm=perm)
    async def _(backend: BlockBackend) -> None:
        extents = map_of(backend)
        assert extents.read_zeroes == (common == "read-zeroes=on")
        assert (await read_bytes(backend, 0, 512) == bytes(512)) == extents.read_zeroes
        await check(backend, flushed)


@pytest.mark.parametrize(
    "definition", ["null-co,node-name=n,latency-ns=1000", "null-aio,node-name=n"]
)
def test_what_takes_time_or_the_loop_is_asked(definition: str) -> None:
    @on(definition)
    async def _(backend: BlockBackend) -> None:
        assert backend.extent_map() is None


def test_a_driver_that_says_nothing_is_asked() -> None:
    async def main() -> None:
        _, backend = backend_on(MemoryNode(SIZE, BlockLimits()))
        assert backend.extent_map() is None

    run(main)


def test_a_window_of_a_window() -> None:
    whole = ExtentMap(ExtentKind.LINEAR, SIZE, fd=3, offset=512)
    window = whole.window(1000, 2048)
    assert window is not None
    assert window.window(24, 512) == replace(whole, offset=1536, size=512)
