# SPDX-License-Identifier: Apache-2.0
"""Slices of L2 tables are loaded once, and stay in memory while the file is older."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from typing import TYPE_CHECKING, Any

from integration.qcow2.tools import check, opened, qemu_img, qemu_io, read, run, write
from vhostblk.block.drivers.qcow2 import commit, publish
from vhostblk.block.drivers.qcow2 import tables as l2
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.drivers.qcow2.transfer import read_array, write_array

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

    from vhostblk.engine.extents import ExtentTable

SIZE = 4 << 20
CLUSTER = 64 << 10


def test_a_disk_without_a_table_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no address space for it. Then everything is looked up."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    def fail(*_arguments: int) -> ExtentTable:
        raise MemoryError

    monkeypatch.setattr(publish, "ExtentTable", fail)

    async def main() -> None:
        async with opened(path, discard="unmap") as (_, backend):
            for fill in (b"\1", b"\2"):
                await write(backend, 0, fill * CLUSTER)
                assert await read(backend, 0, CLUSTER) == fill * CLUSTER
            await backend.pdiscard(0, CLUSTER)
            await backend.flush()
            assert await read(backend, 0, CLUSTER) == bytes(CLUSTER)

    run(main())
    check(path)


def test_a_slice_that_two_want_at_once_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {CLUSTER}")

    async def read_late(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return await read_array(*arguments)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            tables = node._image.tables
            monkeypatch.setattr(l2, "read_array", read_late)
            loaded: list[Any] = []
            tables.on_load = loaded.append
            first, second = await asyncio.gather(tables.load(0), tables.load(0))
            assert first is second
            assert loaded == [first]
            both = await asyncio.gather(read(backend, 0, 512), read(backend, 512, 512))
            assert list(both) == [b"\1" * 512] * 2

    run(main())


def test_a_slice_that_is_being_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it from the file meanwhile would return old entries."""
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, f"write -q -P 1 0 {CLUSTER}")
    model[:CLUSTER] = b"\1" * CLUSTER

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            image, looked = node._image, 0

            async def write_late(*arguments: Any) -> None:
                nonlocal looked
                for _ in range(2):  # the second call evicts slices not used since the first
                    image.tables.clean_unused()
                assert await read(backend, 0, SIZE) == model
                looked += 1
                await write_array(*arguments)

            await write(backend, 8 * CLUSTER, b"n" * CLUSTER)
            model[8 * CLUSTER : 9 * CLUSTER] = b"n" * CLUSTER
            for _ in range(2):
                image.tables.clean_unused()
            assert await read(backend, 0, SIZE) == model
            monkeypatch.setattr(commit, "write_array", write_late)
            await backend.flush()
            assert looked

    run(main())
    check(path)


def _resident(entries: NDArray[Any]) -> int:
    """Return how many pages of a table of entries are in memory."""
    pages = -(-entries.nbytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    address, length = ctypes.c_void_p(entries.ctypes.data), ctypes.c_size_t(entries.nbytes)
    assert ctypes.CDLL(None).mincore(address, length, found) == 0
    return sum(each & 1 for each in found)


def test_slices_of_any_size_give_memory_back(tmp_path: Path) -> None:
    """The entries of eight slices of 512 bytes are in one page."""
    path, step = tmp_path / "disk.qcow2", 64 * CLUSTER
    qemu_img("create", "-q", "-f", "qcow2", path, 4 << 30)
    qemu_io(path, *(f"write -q {at << 29} 512" for at in range(8)))  # a table each

    async def main() -> None:
        small: dict[str, Any] = {"l2_cache_entry_size": 512, "l2_cache_size": 4096}
        async with opened(path, **small) as (node, backend):
            assert isinstance(node, Qcow2Node)
            image, most = node._image, 0
            for offset in range(0, 4 << 30, step):
                await read(backend, offset, 512)
                most = max(most, len(image.tables.slices))
            assert most == 8
            assert _resident(image.publisher.entries) <= 8
            image.tables.clear()
            assert _resident(image.publisher.entries) == 0

    run(main())
