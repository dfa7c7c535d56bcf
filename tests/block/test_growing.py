# SPDX-License-Identifier: Apache-2.0
"""Nodes that grow when a format writes past their end, and nodes that can't."""

from __future__ import annotations

import errno
import itertools
import subprocess
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from tests.filters.drivers import GrowOptions, register
from tests.plugin.support import Memory
from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.schema import plugins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

SIZE = 64 << 10


class Discarding(Memory):
    """Records its requests."""

    async def open(self) -> None:
        await super().open()
        self.requests: list[tuple[int, int]] = []

    async def write(self, offset: int, data: bytes) -> None:
        self.requests.append((offset, len(data)))
        await super().write(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        self.requests.append((offset, length))


@pytest.fixture(autouse=True)
def _drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr(plugins.DRIVERS, "registered", {})
    plugins.register(Discarding)


Define = Callable[[], dict[str, Any]]


@pytest.fixture
def file(tmp_path: Path) -> Define:
    """Return a function that defines one more file."""
    numbers = itertools.count()

    def define() -> dict[str, Any]:
        path = tmp_path / f"{next(numbers)}"
        path.write_bytes(b"\x11" * SIZE)
        return {"driver": "file", "filename": str(path), "discard": "unmap"}

    return define


@asynccontextmanager
async def format_on(definition: dict[str, Any]) -> AsyncIterator[tuple[BlockNode, BlockBackend]]:
    """Put a format, which has no size limit of its own, on a node inside the block."""
    graph = Graph()
    node = await graph.add(options(**definition, node_name="below"))
    top = await graph.add(GrowOptions(node_name="top", file="below"))
    user = BlockBackend("", RW)
    user.attach(graph, top)
    try:
        yield node, user
    finally:
        await user.detach()
        await graph.close()


def quorum(file: Define) -> dict[str, Any]:
    return {"driver": "quorum", "vote-threshold": 2, "children": [file(), file(), file()]}


GROWING: dict[str, Callable[[Define], dict[str, Any]]] = {
    "file": lambda file: file(),
    "raw": lambda file: {"driver": "raw", "file": file()},
    "rest": lambda file: {"driver": "raw", "offset": 4096, "file": file()},
    "quorum": quorum,
    "raw on quorum": lambda file: {"driver": "raw", "file": quorum(file)},
    "rest of quorum": lambda file: {"driver": "raw", "offset": 4096, "file": quorum(file)},
    "preallocate on quorum": lambda file: {"driver": "preallocate", "file": quorum(file)},
    "blkdebug on quorum": lambda file: {"driver": "blkdebug", "image": quorum(file)},
    "blkverify": lambda file: {"driver": "blkverify", "test": quorum(file), "raw": file()},
    "log": lambda file: {"driver": "blklogwrites", "file": file(), "log": quorum(file)},
    "quorum of quorums": lambda file: {
        "driver": "quorum",
        "vote-threshold": 1,
        "children": [quorum(file)],
    },
    "quorum with a full member": lambda file: {
        "driver": "quorum",
        "vote-threshold": 2,
        "children": [file(), file(), {"driver": "raw", "size": SIZE, "file": file()}],
    },
}


@pytest.mark.parametrize("zeroes", [False, True], ids=["data", "zeroes"])
@pytest.mark.parametrize("kind", GROWING)
def test_what_is_written_past_the_end_is_there(file: Define, kind: str, zeroes: bool) -> None:
    async def main() -> None:
        async with format_on(GROWING[kind](file)) as (node, user):
            size = node.size
            if zeroes:
                await user.pwrite_zeroes(size + 1024, 1000)
            else:
                await write_bytes(user, size + 1024, b"\x22" * 1000)
            assert node.size == size + (2024 if kind == "preallocate on quorum" else 2048)
            expected = bytes(1024) + (b"\x00" if zeroes else b"\x22") * 1000 + bytes(24)
            assert await read_bytes(user, size, 2048) == expected
            await write_bytes(user, size - 512, b"\x33" * 1024)
            assert await read_bytes(user, size - 512, 1024) == b"\x33" * 1024
            assert await read_bytes(user, size + 512, 1536) == expected[512:]

    run(main)


def test_bitmaps_of_a_quorum_have_what_made_it_grow(file: Define) -> None:
    async def main() -> None:
        async with format_on(quorum(file)) as (node, user):
            bitmap = DirtyBitmap("b", 9, node.size)
            node.bitmaps.append(bitmap)
            node.recorders = (bitmap,)
            node.parents[0].refresh()
            await write_bytes(user, SIZE + 1024, b"\x22" * 1000)
            await user.pwrite_zeroes(SIZE + 4096, 512)
            assert bitmap.size == node.size == SIZE + 4608
            assert list(bitmap.areas()) == [(SIZE + 1024, 1024), (SIZE + 4096, 512)]

    run(main)


def test_a_write_that_failed_makes_no_quorum_longer(file: Define) -> None:
    async def main() -> None:
        full = {"driver": "raw", "size": SIZE}
        members = [file(), *({**full, "file": file()} for _ in range(2))]
        voting = {"driver": "quorum", "vote-threshold": 2, "children": members}
        async with format_on(voting) as (node, user):
            with fails_with(errno.ENOSPC):
                await write_bytes(user, SIZE, b"\x22" * 512)
            assert node.size == SIZE
            assert await read_bytes(user, SIZE, 512) == bytes(512)

    run(main)


@pytest.mark.parametrize("zeroes", [False, True], ids=["data", "zeroes"])
@pytest.mark.parametrize(
    "below",
    [
        {"driver": "test-memory"},
        {"driver": "raw", "file": {"driver": "test-memory"}},
        {"driver": "raw", "size": SIZE, "file": {"driver": "null-co"}},
        {"driver": "raw", "size": SIZE, "offset": 512, "file": {"driver": "null-co"}},
        {"driver": "blkdebug", "image": {"driver": "test-memory"}},
    ],
    ids=["plug-in", "raw", "window", "window at an offset", "blkdebug"],
)
def test_node_that_cant_grow_gets_nothing_past_its_end(below: dict[str, Any], zeroes: bool) -> None:
    async def main() -> None:
        async with format_on(below) as (node, user):
            size = node.size
            for start in (size, size - 512, size + 4096):
                with fails_with(errno.ENOSPC):
                    if zeroes:
                        await user.pwrite_zeroes(start, 1024)
                    else:
                        await write_bytes(user, start, b"\x22" * 1024)
                with fails_with(errno.ENOSPC):
                    await node.parents[0].reserve(start, 1024)
            assert node.size == size
            await user.flush()

    run(main)


def test_plug_in_gets_no_request_past_its_end() -> None:
    async def main() -> None:
        async with format_on({"driver": "test-memory", "discard": "unmap"}) as (node, user):
            with fails_with(errno.ENOSPC):
                await write_bytes(user, node.size - 512, b"\x22" * 1024)
            edge = node.parents[0]
            await edge.pdiscard(node.size - 512, 4096)
            await edge.pdiscard(node.size + 512, 4096)
            assert node._driver.requests == [(node.size - 512, 512)]  # type: ignore[attr-defined]

    run(main)


def test_log_in_a_disk_of_fixed_length_ends_where_that_ends(file: Define, tmp_path: Path) -> None:
    """Writes past the end of a qcow2 image would be lost when it is opened again."""
    image = tmp_path / "log.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64k"], check=True)

    async def main() -> None:
        log = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
        async with format_on({"driver": "blklogwrites", "file": file(), "log": log}) as (_, user):
            await write_bytes(user, 0, b"\x22" * (SIZE - 1024))
            with fails_with(errno.ENOSPC):
                await write_bytes(user, 0, b"\x33" * 512)

    run(main)
    checked = subprocess.run(["qemu-img", "check", "-q", str(image)], check=False)
    assert checked.returncode == 0
