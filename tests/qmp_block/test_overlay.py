# SPDX-License-Identifier: Apache-2.0
"""External snapshots: overlays take nodes' places, under load, and all of several or none."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, write_bytes
from tests.frontend.loop_thread import loop
from tests.qmp_block.jobs import create
from tests.qmp_block.load import SIZE, export_disk, serving, verify_under_changes
from tests.qmp_block.support import execute
from tests.virtio_blk.lanes import lane
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.actions import perform
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.overlay import OverlayAction
from vhostblk.block.io.iovec import IoVec
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.frontend.loop_thread import LoopThread

__all__ = ["lane", "loop"]  # fixtures


async def make(daemon: Daemon, path: Path, size: int = SIZE) -> None:
    """Create a qcow2 image."""
    file = {"driver": "file", "filename": str(path)}
    for _, arguments in (
        create("file", filename=str(path), size=0),
        create("qcow2", file=file, size=size),
    ):
        daemon.create_image("make", arguments["options"])
        job = daemon.jobs.find("make")
        await job.wait()
        assert job.error is None
        job.user_dismiss()


async def add(daemon: Daemon, path: Path, **members: Any) -> str:
    """Create a qcow2 image and open it as a node that is called like it."""
    await make(daemon, path)
    file = {"driver": "file", "filename": str(path)}
    await daemon.add_blockdev({"driver": "qcow2", "node-name": path.name, "file": file, **members})
    return path.name


async def answered(daemon: Daemon, command: str, **arguments: Any) -> None:
    answer = await execute(
        daemon, command, {name.replace("_", "-"): value for name, value in arguments.items()}
    )
    assert "return" in answer, answer


async def read(backend: BlockBackend, offset: int, length: int) -> bytes:
    iov = IoVec.allocate(length)
    await backend.preadv(offset, iov)
    return iov.to_bytes()


@pytest.mark.usefixtures("lane")
def test_snapshots_under_load(tmp_path: Path, loop: LoopThread) -> None:
    daemon = Daemon()

    async def snapshots(done: asyncio.Event) -> int:
        top, number = "disk", 0
        while not done.is_set() and number < 8:
            number += 1
            name = f"n{number}"
            path = str(tmp_path / name)
            if number % 2:
                await answered(
                    daemon,
                    "blockdev-snapshot-sync",
                    node_name=top,
                    snapshot_file=path,
                    snapshot_node_name=name,
                )
            else:
                await add(daemon, tmp_path / name, backing=None)
                await answered(daemon, "blockdev-snapshot", node=top, overlay=name)
            top = name
            assert daemon.exports["e"].backend.node.node_name == top
            assert daemon.graph.find("disk").read_only
        return number

    async def start() -> None:
        await add(daemon, tmp_path / "disk")
        await export_disk(daemon, tmp_path)

    loop.run(start())
    with serving(daemon, loop, tmp_path / "e.sock") as driver:
        assert verify_under_changes(driver, loop, snapshots) >= 2


def test_the_base_keeps_what_it_had(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            for name in ("base", "overlay"):
                await add(daemon, tmp_path / name, **({"backing": None} if name != "base" else {}))
            base = daemon.graph.find("base")
            user, other = BlockBackend("user", RW), BlockBackend("other", RW)
            user.attach(daemon.graph, base)
            await write_bytes(user, 0, b"a" * 100_000)
            await answered(daemon, "blockdev-snapshot", node="base", overlay="overlay")
            assert user.node.node_name == "overlay"
            assert base.read_only
            assert await read(user, 0, 100_000) == b"a" * 100_000
            await write_bytes(user, 50_000, b"b" * 10)
            await user.pwrite_zeroes(0, 65536)
            with pytest.raises(BlockError, match="read-only"):
                other.attach(daemon.graph, base)
            looker = BlockBackend("looker", RW & ~RW.WRITE)
            looker.attach(daemon.graph, base)
            assert await read(looker, 0, 100_000) == b"a" * 100_000
            expected = bytes(65536) + b"a" * (100_000 - 65536)
            assert await read(user, 0, 100_000) == expected
            await looker.detach()
            await user.detach()

    asyncio.run(main())


def test_several_or_none(tmp_path: Path) -> None:
    """The second snapshot fails, so the first is undone, with all that clients see."""

    async def main() -> None:
        async with Daemon() as daemon:
            await add(daemon, tmp_path / "a")
            await add(daemon, tmp_path / "b")
            await add(daemon, tmp_path / "c", backing=None)
            graph = daemon.graph
            a, b, c = (graph.find(name) for name in "abc")
            user = BlockBackend("user", RW)
            user.attach(graph, a)
            await write_bytes(user, 0, b"a" * 1000)
            before = (await execute(daemon, "x-debug-query-block-graph", {}), user.extent_map())
            actions = [OverlayAction(graph, a, c), OverlayAction(graph, b, c)]
            with pytest.raises(BlockError, match=r"^The overlay is already in use$"):
                await perform(graph, actions)
            after = await execute(daemon, "x-debug-query-block-graph", {})
            assert after == before[0]
            assert user.node is a
            assert not a.read_only
            assert "backing" not in c.children
            assert await read(user, 0, 1000) == b"a" * 1000
            await write_bytes(user, 0, b"b" * 1000)
            await perform(graph, actions[:1])
            assert await read(user, 0, 1000) == b"b" * 1000
            await user.detach()

    asyncio.run(main())


def test_all_users_of_the_base_go_over(tmp_path: Path) -> None:
    """The users are block backends, and a node above the base."""

    async def main() -> None:
        async with Daemon() as daemon:
            graph = daemon.graph
            await add(daemon, tmp_path / "base")
            await add(daemon, tmp_path / "overlay", backing=None)
            await daemon.add_blockdev({"driver": "raw", "node-name": "top", "file": "base"})
            users = [BlockBackend(f"user{number}", RW) for number in range(3)]
            for user, name in zip(users, ("base", "top", "base"), strict=True):
                user.attach(graph, graph.find(name))
            await write_bytes(users[0], 0, b"a" * 4096)
            await answered(daemon, "blockdev-snapshot", node="base", overlay="overlay")
            base, overlay = graph.find("base"), graph.find("overlay")
            assert [edge.parent for edge in base.parents] == [overlay]
            for number, user in enumerate(users):
                await write_bytes(user, 512 * number, bytes([number]) * 512)
            for user in users:
                assert (
                    await read(user, 0, 2048) == bytes(512) + b"\1" * 512 + b"\2" * 512 + b"a" * 512
                )
                await user.detach()
            looker = BlockBackend("looker", RW & ~RW.WRITE)
            looker.attach(graph, base)
            assert await read(looker, 0, 4096) == b"a" * 4096
            await looker.detach()

    asyncio.run(main())


def test_snapshots_of_snapshots_are_undone_in_order(tmp_path: Path) -> None:
    """The third one fails. The second snapshot is of the first one's overlay."""

    async def main() -> None:
        async with Daemon() as daemon:
            graph = daemon.graph
            await add(daemon, tmp_path / "base")
            for name in ("one", "two"):
                await add(daemon, tmp_path / name, backing=None)
            base, one, two = (graph.find(name) for name in ("base", "one", "two"))
            user = BlockBackend("user", RW)
            user.attach(graph, base)
            await write_bytes(user, 0, b"a" * 1000)
            before = await execute(daemon, "x-debug-query-block-graph", {})
            actions = [
                OverlayAction(graph, base, one),
                OverlayAction(graph, one, two),
                OverlayAction(graph, two, one),
            ]
            with pytest.raises(BlockError):
                await perform(graph, actions)
            assert await execute(daemon, "x-debug-query-block-graph", {}) == before
            assert user.node is base
            assert not base.read_only
            assert not one.children.get("backing")
            assert not two.children.get("backing")
            await write_bytes(user, 0, b"b" * 1000)
            assert await read(user, 0, 1000) == b"b" * 1000
            await user.detach()

    asyncio.run(main())


def test_a_base_that_cannot_be_flushed_stays_what_it_is(tmp_path: Path) -> None:
    """Later the error would not be reported to anybody."""

    async def main() -> None:
        async with Daemon() as daemon:
            graph = daemon.graph
            await add(daemon, tmp_path / "base")
            await add(daemon, tmp_path / "overlay", backing=None)
            base = graph.find("base")
            user = BlockBackend("user", RW)
            user.attach(graph, base)
            await write_bytes(user, 0, b"a" * 4096)
            file: Any = base.children["file"].node
            flush = file.flush

            async def fail() -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            file.flush = fail
            arguments = {"node": "base", "overlay": "overlay"}
            answer = await execute(daemon, "blockdev-snapshot", arguments)
            assert answer["desc"] == "Write to node 'base' failed: Input/output error"
            assert user.node is base
            assert not base.read_only
            file.flush = flush
            await user.flush()
            await user.detach()

    asyncio.run(main())


def test_a_failed_snapshot_leaves_no_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await add(daemon, tmp_path / "disk")
            for name, path in (("1", "new"), ("x" * 32, "other")):
                answer = await execute(
                    daemon,
                    "blockdev-snapshot-sync",
                    {
                        "node-name": "disk",
                        "snapshot-file": str(tmp_path / path),
                        "snapshot-node-name": name,
                    },
                )
                assert "desc" in answer
            assert [node.node_name for node in daemon.graph if node.driver == "qcow2"] == ["disk"]

    asyncio.run(main())
    assert [each.name for each in tmp_path.iterdir()] == ["disk"]
