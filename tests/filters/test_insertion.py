# SPDX-License-Identifier: Apache-2.0
"""Filters go in and out of a graph under a front-end's load, in both lanes, and miss nothing."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.filters.drivers import CLUSTER, CowNode, CowOptions, register
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.loop_thread import loop
from tests.frontend.memory import Memory
from tests.qmp_block.support import execute
from tests.virtio_blk.lanes import lane
from vhostblk.block.io.iovec import IoVec
from vhostblk.daemon import Daemon
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread

SIZE = 4 << 20
BLOCK = 4096

__all__ = ["lane", "loop"]  # fixtures

pytestmark = pytest.mark.usefixtures("lane")


class Writer(threading.Thread):
    """A front-end that overwrites random blocks, sixteen at a time, until it is stopped."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="front-end")
        self.model = bytearray(SIZE)
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self.rounds = 0
        self._path = path

    def run(self) -> None:
        memory = Memory()
        try:
            with BlkDriver(Connection.connect(self._path), memory) as driver:
                while not self.stopping.is_set():
                    self._round(driver)
                    self.rounds += 1
                assert driver.read(0, SIZE) == self.model
        except BaseException as error:
            self.error = error
        finally:
            memory.close()

    def _round(self, driver: BlkDriver) -> None:
        chosen = random.Random(self.rounds)
        order = chosen.sample(range(SIZE // BLOCK), 128)
        data = [chosen.randbytes(BLOCK) for _ in order]
        for block, content in zip(order, data, strict=True):
            self.model[block * BLOCK : (block + 1) * BLOCK] = content
        done = driver.run_at_depth(
            16, len(order), lambda n: (RequestType.OUT, order[n] * BLOCK, data[n])
        )
        assert {request.status for request, _ in done} == {Status.OK}

    async def more(self, rounds: int = 2) -> None:
        """Wait for some more rounds."""
        goal = self.rounds + rounds
        async with asyncio.timeout(60):
            while self.rounds < goal and self.error is None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def finish(self) -> None:
        self.stopping.set()
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def definitions(path: Path) -> list[dict[str, Any]]:
    return [
        {"driver": "file", "node-name": "file", "filename": str(path)},
        {"driver": "raw", "node-name": "disk", "file": "file"},
    ]


def export(path: Path) -> dict[str, Any]:
    addr = {"type": "unix", "path": str(path)}
    members = {"type": "vhost-user-blk", "id": "e", "node-name": "disk", "addr": addr}
    return {**members, "writable": True}


async def answered(daemon: Daemon, command: str, **arguments: Any) -> None:
    answer = await execute(
        daemon, command, {name.replace("_", "-"): value for name, value in arguments.items()}
    )
    assert "return" in answer, answer


async def put_below_disk(daemon: Daemon, name: str) -> None:
    options = [{"driver": "raw", "node-name": "disk", "file": name}]
    await answered(daemon, "blockdev-reopen", options=options)


def writable_in_map(daemon: Daemon) -> bool | None:
    extents = daemon.exports["e"].backend.extent_map()
    return None if extents is None else extents.writable


def test_copy_before_write_sees_every_write(tmp_path: Path, loop: LoopThread) -> None:
    path, target = tmp_path / "disk.img", tmp_path / "target.img"
    path.write_bytes(bytes(SIZE))
    target.write_bytes(bytes(SIZE))
    daemon = Daemon(blockdevs=definitions(path), exports=[export(tmp_path / "e.sock")])
    loop.run(daemon.__aenter__())
    writer = Writer(tmp_path / "e.sock")

    async def take_and_drop() -> None:
        await answered(daemon, "blockdev-add", driver="file", node_name="t", filename=str(target))
        members = {"driver": "copy-before-write", "node_name": "cbw", "file": "file", "target": "t"}
        await answered(daemon, "blockdev-add", **members)
        await writer.more()
        disk = daemon.graph.find("disk")
        async with daemon.graph.drained([disk]):
            taken = path.read_bytes()
            await put_below_disk(daemon, "cbw")
            await answered(
                daemon,
                "blockdev-add",
                driver="snapshot-access",
                node_name="snap",
                file="cbw",
                read_only=True,
            )
        assert writable_in_map(daemon) is False
        await writer.more()
        assert await snapshot(daemon) == taken
        await writer.more()
        assert await snapshot(daemon) == taken
        assert path.read_bytes() != taken
        await answered(daemon, "blockdev-del", node_name="snap")
        await put_below_disk(daemon, "file")
        assert writable_in_map(daemon) is True
        saved = target.read_bytes()
        await writer.more()
        assert target.read_bytes() == saved
        for name in ("cbw", "t"):
            await answered(daemon, "blockdev-del", node_name=name)

    try:
        writer.start()
        for _ in range(3):
            loop.run(take_and_drop(), timeout=100)
        writer.finish()
        assert path.read_bytes() == writer.model
    finally:
        writer.stopping.set()
        writer.join(60)
        loop.run(daemon.close())


async def snapshot(daemon: Daemon) -> bytes:
    iov = IoVec.allocate(SIZE)
    await daemon.graph.find("snap").preadv(0, iov)
    return iov.to_bytes()


def test_copy_on_read_copies_all_and_undoes_nothing(
    tmp_path: Path, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    base = tmp_path / "base.img"
    base.write_bytes(bytes(SIZE))
    daemon = Daemon()
    loop.run(daemon.__aenter__())
    writer = Writer(tmp_path / "e.sock")

    async def build() -> CowNode:
        file = {"driver": "file", "node-name": "base", "filename": str(base), "read-only": True}
        await daemon.add_blockdev(file)
        image = await daemon.graph.add(CowOptions(node_name="image", backing="base", size=SIZE))
        await daemon.add_blockdev({"driver": "raw", "node-name": "disk", "file": "image"})
        await daemon.add_export(export(tmp_path / "e.sock"))
        assert isinstance(image, CowNode)
        return image

    async def put_in_and_out(image: CowNode) -> None:
        await writer.more()
        await answered(daemon, "blockdev-add", driver="copy-on-read", node_name="cor", file="image")
        await put_below_disk(daemon, "cor")
        assert writable_in_map(daemon) is None
        iov = IoVec.allocate(CLUSTER)
        backend = daemon.exports["e"].backend
        for offset in range(0, SIZE, CLUSTER):
            async with backend.request():
                await backend.preadv(offset, iov)
        assert len(image.clusters) == SIZE // CLUSTER
        await put_below_disk(daemon, "image")
        await answered(daemon, "blockdev-del", node_name="cor")
        await writer.more()

    try:
        image = loop.run(build())
        writer.start()
        loop.run(put_in_and_out(image), timeout=100)
        writer.finish()
        assert b"".join(image.clusters[n] for n in range(SIZE // CLUSTER)) == writer.model
    finally:
        writer.stopping.set()
        writer.join(60)
        loop.run(daemon.close())
