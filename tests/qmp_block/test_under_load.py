# SPDX-License-Identifier: Apache-2.0
"""Nodes change while a front-end does verified I/O, in both lanes: nothing fails or is lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import LoopThread
from tests.frontend.memory import Memory
from tests.qmp_block.support import execute
from vhostblk import engine
from vhostblk.daemon import Daemon
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 20
BLOCK = 4096


@pytest.fixture(params=["python", "express"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "express" and engine.load() is None:
        pytest.skip("no compiled engine")
    monkeypatch.setenv("VHOSTBLK_LANE", request.param)
    return str(request.param)


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    with LoopThread() as thread:
        yield thread


def changes(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield commands that leave the disk's data where it is."""
    file = {"driver": "file", "node-name": "file", "filename": str(path)}
    disk = {"driver": "raw", "node-name": "disk"}
    for number in itertools.count():
        for change in (
            {**file, "cache": {"no-flush": True}},
            {**disk, "file": "middle"},
            {**file, "discard": "unmap", "detect-zeroes": "unmap"},
            {**disk, "file": "file"},
            {**file, "cache": {"direct": True}},
            file,
        ):
            yield "blockdev-reopen", {"options": [change]}
        yield "block-set-write-threshold", {"node-name": "file", "write-threshold": SIZE // 2}
        yield "block_resize", {"node-name": "disk", "size": SIZE + BLOCK * (number % 5)}


async def change_until(daemon: Daemon, path: Path, done: asyncio.Event) -> int:
    """Make changes; return how many succeeded."""
    succeeded = 0
    for name, arguments in changes(path):
        if done.is_set():
            break
        answer = await execute(daemon, name, arguments)
        # A file system may have no O_DIRECT.
        assert "return" in answer or "O_DIRECT" in answer["desc"], answer
        succeeded += "return" in answer
        await asyncio.sleep(0.001)
    await execute(daemon, "block_resize", {"node-name": "disk", "size": 2 * SIZE})
    return succeeded


def test_changes_under_load(lane: str, tmp_path: Path, loop: LoopThread) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    daemon = Daemon(
        blockdevs=[
            {"driver": "file", "node-name": "file", "filename": str(path)},
            {"driver": "raw", "node-name": "middle", "file": "file"},
            {"driver": "raw", "node-name": "disk", "file": "file"},
        ],
        exports=[
            {
                "type": "vhost-user-blk",
                "id": "e",
                "node-name": "disk",
                "addr": {"type": "unix", "path": str(tmp_path / "e.sock")},
                "writable": True,
            }
        ],
    )
    loop.run(daemon.__aenter__())
    try:
        memory = Memory()
        done = asyncio.Event()
        changing = asyncio.run_coroutine_threadsafe(change_until(daemon, path, done), loop.loop)
        with BlkDriver(Connection.connect(tmp_path / "e.sock"), memory) as driver:
            write_and_verify(driver)
            loop.loop.call_soon_threadsafe(done.set)
            assert changing.result(30) >= 4
            assert driver.capacity == 2 * SIZE
        memory.close()
    finally:
        loop.run(daemon.close())


def write_and_verify(driver: BlkDriver) -> None:
    """Write each block many times, sixteen at a time; check each after each round."""
    chosen = random.Random(4)
    blocks = SIZE // BLOCK
    for _ in range(8):
        data = [chosen.randbytes(8) * (BLOCK // 8) for _ in range(blocks)]
        data[3] = bytes(BLOCK)
        order = chosen.sample(range(blocks), blocks)

        def write(
            number: int, order: list[int] = order, data: list[bytes] = data
        ) -> tuple[int, int, bytes]:
            block = order[number]
            return RequestType.OUT, block * BLOCK, data[block]

        driver.run_at_depth(16, blocks, write)
        driver.flush()
        for block in range(0, blocks, 16):
            assert driver.read(block * BLOCK, 16 * BLOCK) == b"".join(data[block : block + 16])
