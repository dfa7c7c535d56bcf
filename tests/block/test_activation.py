# SPDX-License-Identifier: Apache-2.0
"""Inactive nodes, resizing, and write thresholds."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.locks import locked_bytes
from tests.block.support import RW, options, read_bytes, run, write_bytes
from tests.unsynced import directory_on_disk, unsynced_bytes
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.locking import ImageLock
from vhostblk.block.graph.permissions import Perm
from vhostblk.events import Event, EventBus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def length(path: Path) -> int:
    return path.stat().st_size


async def make(image: Path, graph: Graph) -> Any:
    await graph.add(options(driver="file", node_name="f", filename=str(image)))
    return await graph.add(options(driver="raw", node_name="r", file="f"))


# Inactive nodes.


def test_an_inactive_node_leaves_its_image_to_others(image: Path) -> None:
    async def main() -> None:
        graph = Graph()
        raw = await make(image, graph)
        exclusive = BlockBackend("reader", Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
        exclusive.attach(graph, raw)
        assert locked_bytes(image)
        with pytest.raises(BlockError, match="Node has active parent node"):
            await graph.set_active("f", active=False)
        await graph.set_active("r", active=False)
        assert not graph.find("f").active
        assert not locked_bytes(image)
        await graph.set_active("r", active=False)  # again is harmless

        fd = os.open(image, os.O_RDWR)
        other = ImageLock(fd, "other")
        other.acquire(RW, Perm.ALL)
        with pytest.raises(BlockError, match="Failed to get"):
            await graph.set_active("r", active=True)
        assert not raw.active
        assert not graph.find("f").active
        os.ftruncate(fd, 2 << 20)
        os.close(fd)
        await graph.set_active("r", active=True)
        assert exclusive.size == 2 << 20
        assert locked_bytes(image)
        await exclusive.detach()
        await graph.close()

    run(main)


def test_what_was_written_is_on_the_disk_when_a_node_is_inactive(tmp_path: Path) -> None:
    """Another host, which does not share our page cache, continues from there."""

    async def main(path: Path) -> None:
        graph = Graph()
        raw = await make(path, graph)
        guest = BlockBackend("guest", RW)
        guest.attach(graph, raw)
        await write_bytes(guest, 0, bytes(65536))
        await guest.detach()
        await graph.set_active("r", active=False)
        assert unsynced_bytes(path) == 0
        await graph.close()

    with directory_on_disk(tmp_path) as directory:
        path = directory / "image"
        path.write_bytes(bytes(1 << 20))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        run(lambda: main(path))


def test_writers_keep_a_node_active(image: Path) -> None:
    async def main() -> None:
        graph = Graph()
        raw = await make(image, graph)
        await graph.add(options(driver="null-co", node_name="n"))
        writer = BlockBackend("", RW)
        writer.attach(graph, raw)
        for name, what in (("r", "node"), (None, "all nodes")):
            with pytest.raises(BlockError) as caught:
                await graph.set_active(name, active=False)
            assert str(caught.value) == f"Failed to inactivate {what}: Operation not permitted"
        assert all(node.active for node in graph)
        await writer.detach()
        await graph.set_active(None, active=False)
        assert not any(node.active for node in graph)
        with pytest.raises(BlockError, match="Permission 'consistent read, write' unavailable on"):
            BlockBackend("", RW).attach(graph, raw)
        with pytest.raises(BlockError, match="Permission 'resize' unavailable on inactive node"):
            await graph.resize(raw, 512)
        with pytest.raises(BlockError, match="Inactive 'f' can't be a file child of active 'x'"):
            await graph.add(options(driver="raw", node_name="x", file="f"))
        await graph.set_active("f", active=True)
        assert not raw.active
        await graph.close()

    run(main)


# Resizing.


def test_all_users_see_a_new_size_at_once(image: Path) -> None:
    async def main() -> None:
        graph = Graph()
        raw = await make(image, graph)
        user = BlockBackend("", RW)
        user.attach(graph, raw)
        seen: list[tuple[int, bool]] = []
        user.on_resize(lambda: seen.append((user.size, user.quiesced)))
        for size in (2 << 20, 1 << 19):
            await graph.resize(raw, size)
            extents = user.extent_map()
            assert extents is not None
            assert extents.size == size == length(image)
        assert seen == [(2 << 20, True), (1 << 19, True)]
        await user.detach()
        await graph.close()

    run(main)


def test_sizes_that_cannot_be(image: Path) -> None:
    async def main() -> None:
        graph = Graph()
        raw = await make(image, graph)
        null = await graph.add(options(driver="null-co", node_name="n"))
        locked = await graph.add(
            options(driver="file", node_name="l", filename=str(image), read_only=True)
        )
        for node, message in (
            (null, "Image format driver does not support resize"),
            (locked, "Image is read-only"),
        ):
            with pytest.raises(BlockError) as caught:
                await graph.resize(node, 512)
            assert str(caught.value) == message
        with pytest.raises(BlockError, match="Required too big image size"):
            await graph.resize(raw, (1 << 63) - 1)
        window = await graph.add(options(driver="raw", node_name="w", file="f", size=512))
        with pytest.raises(BlockError, match="Permission conflict on node 'f'"):
            await graph.resize(raw, 512)
        with pytest.raises(BlockError, match="Cannot resize fixed-size raw disks"):
            await graph.resize(window, 1024)
        await graph.close()
        assert length(image) == 1 << 20

    run(main)


# Write thresholds.


@pytest.mark.parametrize("watched", ["f", "r"])
def test_the_first_write_past_the_threshold_is_told(image: Path, watched: str) -> None:
    events: list[Event] = []

    async def main() -> None:
        bus = EventBus()
        bus.listen(events.append)
        graph = Graph(bus)
        raw = await make(image, graph)
        user = BlockBackend("", RW)
        user.attach(graph, raw)
        await graph.set_write_threshold(graph.find(watched), 1000)
        extents = user.extent_map()
        assert extents is not None
        assert not extents.writable
        await write_bytes(user, 0, bytes(1000))
        assert await read_bytes(user, 0, 4096) == bytes(4096)
        assert not events
        await user.pwrite_zeroes(0, 1001)
        await write_bytes(user, 4096, b"x")
        [event] = events
        assert event.name == "BLOCK_WRITE_THRESHOLD"
        data: Any = event.data
        assert (data.node_name, data.amount_exceeded, data.write_threshold) == (watched, 1, 1000)
        extents = user.extent_map()
        assert extents is not None
        assert extents.writable
        await asyncio.gather(*graph._refreshing)  # users have been told by now
        await user.detach()
        await graph.close()

    run(main)
