# SPDX-License-Identifier: Apache-2.0
"""`copy-on-read` on an image with a backing chain."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, options, read_bytes, run, write_bytes
from tests.filters.drivers import CLUSTER, CowNode, CowOptions, register
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16 * CLUSTER


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


async def chain(graph: Graph, path: Path, size: int = SIZE) -> tuple[CowNode, CowNode, bytes]:
    """Make top, on middle, on a file; return both and the file's content."""
    content = random.Random(1).randbytes(size)
    path.write_bytes(content)  # noqa: ASYNC240
    await graph.add(options(driver="file", node_name="base", filename=str(path), read_only=True))
    middle = await graph.add(CowOptions(node_name="middle", backing="base", size=size))
    top = await graph.add(CowOptions(node_name="top", backing="middle", size=size))
    assert isinstance(middle, CowNode)
    assert isinstance(top, CowNode)
    return top, middle, content


async def filtered(graph: Graph, perm: Perm = Perm.CONSISTENT_READ, **members: Any) -> BlockBackend:
    node = await graph.add(options(driver="copy-on-read", node_name="cor", file="top", **members))
    backend = BlockBackend("", perm)
    backend.attach(graph, node)
    return backend


def test_reads_copy_whole_clusters_and_only_what_is_missing(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        top, _, content = await chain(graph, tmp_path / "base")
        top.clusters[2] = b"\x99" * CLUSTER
        backend = await filtered(graph)
        assert backend.extent_map() is None
        assert await read_bytes(backend, CLUSTER + 100, 2 * CLUSTER) == (
            content[CLUSTER + 100 : 2 * CLUSTER] + b"\x99" * CLUSTER + content[3 * CLUSTER :][:100]
        )
        assert sorted(top.clusters) == [1, 2, 3]
        assert [write[2] for write in top.writes] == [WriteFlags.WRITE_UNCHANGED] * 2
        assert top.clusters[1] == content[CLUSTER : 2 * CLUSTER]

    run(main)


def test_parts_of_clusters_are_copied_where_the_image_can_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CowNode, "subcluster_size", 1024)

    async def main() -> None:
        graph = Graph()
        top, _, content = await chain(graph, tmp_path / "base")
        backend = await filtered(graph)
        assert await read_bytes(backend, 1500, 100) == content[1500:1600]
        assert [write[:2] for write in top.writes] == [(1024, 1024)]

    run(main)


def test_an_image_that_another_lies_on_is_busy(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        await chain(graph, tmp_path / "base")
        with pytest.raises(BlockError) as caught:
            await graph.remove("middle")
        message = "Node 'middle' is busy: node is used as backing hd of 'top'"
        assert str(caught.value) == message

    run(main)


def test_the_last_cluster_may_be_cut_off(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        top, _, content = await chain(graph, tmp_path / "base", SIZE + 512)
        backend = await filtered(graph)
        assert await read_bytes(backend, SIZE, 512) == content[SIZE:]
        assert 16 in top.clusters

    run(main)


def test_bottom_limits_what_is_copied(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        top, middle, content = await chain(graph, tmp_path / "base")
        middle.clusters[1] = b"\x77" * CLUSTER
        backend = await filtered(graph, bottom="middle")
        expected = content[:CLUSTER] + b"\x77" * CLUSTER + content[2 * CLUSTER :]
        assert await read_bytes(backend, 0, SIZE) == expected
        assert sorted(top.clusters) == [1]

    run(main)


def test_bottom_keeps_the_chain(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        await chain(graph, tmp_path / "base")
        backend = await filtered(graph, bottom="middle")
        moved = CowOptions(node_name="top", backing="base", size=SIZE)
        with pytest.raises(
            BlockError, match="Cannot change frozen 'backing' link from 'top' to 'middle'"
        ):
            await graph.reopen([moved])
        await backend.detach()
        await graph.remove("cor")
        await graph.reopen([moved])

    run(main)


def test_a_bottom_that_is_not_below_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        await chain(graph, tmp_path / "base")
        await graph.add(CowOptions(node_name="other"))
        with pytest.raises(BlockError, match="Bottom node 'other' is not in the chain of 'cor'"):
            await filtered(graph, bottom="other")
        await graph.close()

    run(main)


@pytest.mark.parametrize("way", ["through the filter", "past it", "past it, from before it"])
def test_copies_undo_no_write(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        graph = Graph()
        top, _, content = await chain(graph, tmp_path / "base")
        writer = BlockBackend("", RW)
        if way == "past it, from before it":
            writer.attach(graph, top)
        backend = await filtered(graph, RW)
        if way == "past it":
            writer.attach(graph, top)
        elif way == "through the filter":
            writer = backend
        model = bytearray(content)
        chosen = random.Random(2)
        work = []
        for offset in chosen.sample(range(0, SIZE, 512), 60):
            data = chosen.randbytes(512)
            model[offset : offset + 512] = data
            work.append(write_bytes(writer, offset, data))
            work.append(_ignored(read_bytes(backend, offset // CLUSTER * CLUSTER, CLUSTER)))
        await asyncio.gather(*work)
        assert await read_bytes(backend, 0, SIZE) == model
        assert len(top.clusters) == 16
        assert b"".join(top.clusters[number] for number in range(16)) == model

    run(main)


async def _ignored(reading: Any) -> None:
    await reading


def test_compressed_writes_keep_their_flag(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        top, _, _ = await chain(graph, tmp_path / "base")
        await graph.add(options(driver="copy-on-read", node_name="cor", file="top"))
        node = await graph.add(options(driver="compress", node_name="c", file="cor"))
        backend = BlockBackend("", RW)
        backend.attach(graph, node)
        await backend.pwritev(100, IoVec.from_buffers([bytearray(b"x" * 10)]))
        assert top.writes[-1] == (0, CLUSTER, WriteFlags.WRITE_COMPRESSED)

    run(main)
