# SPDX-License-Identifier: Apache-2.0
"""`preallocate` between a format that grows and its file."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, options, read_bytes, run, write_bytes
from tests.filters.drivers import GrowOptions, register
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

KIB = 1 << 10
ALIGN, AHEAD = 64 * KIB, 256 * KIB


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


async def grown(graph: Graph, path: Path, start: int = 4 * KIB) -> tuple[BlockBackend, BlockNode]:
    path.write_bytes(b"\x11" * start)  # noqa: ASYNC240
    await graph.add(options(driver="file", node_name="file", filename=str(path)))
    members: dict[str, Any] = {"prealloc_align": ALIGN, "prealloc_size": AHEAD}
    node = await graph.add(options(driver="preallocate", node_name="pre", file="file", **members))
    top = await graph.add(GrowOptions(node_name="top", file="pre"))
    backend = BlockBackend("", RW)
    backend.attach(graph, top)
    return backend, node


def test_a_write_past_the_end_extends_the_file_ahead(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 512)
        assert node.size == 4 * KIB + 512
        length = path.stat().st_size
        assert length == -(-(4 * KIB + 512 + AHEAD) // ALIGN) * ALIGN
        assert path.stat().st_blocks * 512 >= length
        await write_bytes(backend, 8 * KIB, b"\x33" * 512)
        assert path.stat().st_size == length
        assert await read_bytes(backend, 4 * KIB, 8 * KIB) == (
            b"\x22" * 512 + bytes(3584) + b"\x33" * 512 + bytes(3584)
        )
        await backend.detach()
        await node.settle()
        assert path.stat().st_size == 8 * KIB + 512
        await graph.close()
        assert path.read_bytes()[4 * KIB :] == b"\x22" * 512 + bytes(3584) + b"\x33" * 512

    run(main)


def test_zeroes_over_what_was_written_to_zeroes_are_written(tmp_path: Path) -> None:
    async def main() -> None:
        graph = Graph()
        backend, _ = await grown(graph, tmp_path / "file")
        await backend.pwrite_zeroes(4 * KIB, 4 * KIB)
        await write_bytes(backend, 5 * KIB, b"\x55" * KIB)
        await backend.pwrite_zeroes(4 * KIB, 8 * KIB)
        assert await read_bytes(backend, 4 * KIB, 8 * KIB) == bytes(8 * KIB)
        await backend.detach()
        await graph.close()

    run(main)


def test_zeroes_ahead_need_not_be_written(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await backend.pwrite_zeroes(4 * KIB, KIB)
        await backend.pwrite_zeroes(16 * KIB, KIB)
        assert node.size == 17 * KIB
        await write_bytes(backend, 20 * KIB, b"\x44" * KIB)
        assert await read_bytes(backend, 0, 21 * KIB) == (
            b"\x11" * 4 * KIB + bytes(16 * KIB) + b"\x44" * KIB
        )
        await backend.detach()
        await graph.close()
        assert path.stat().st_size == 21 * KIB

    run(main)


def test_zeroes_over_data_are_written(tmp_path: Path) -> None:
    """A range that begins in data and ends past it does not read as zeroes yet."""

    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 4 * KIB)
        await backend.pwrite_zeroes(6 * KIB, 4 * KIB)
        assert node.size == 10 * KIB
        assert await read_bytes(backend, 4 * KIB, 6 * KIB) == b"\x22" * 2 * KIB + bytes(4 * KIB)
        await backend.detach()
        await graph.close()

    run(main)


def test_others_keep_off_until_the_preallocation_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        edge = node.children["file"]
        await write_bytes(backend, 0, b"\x22")
        assert edge.perm == RW | Perm.RESIZE
        assert not edge.shared & (Perm.WRITE | Perm.RESIZE)
        await backend.detach()
        assert edge.perm & Perm.RESIZE
        await node.settle()
        assert not edge.perm
        assert edge.shared & Perm.WRITE
        await graph.close()

    run(main)


@pytest.mark.parametrize("how", ["reopen", "inactive"])
def test_it_is_dropped_before_the_node_gives_up_writing(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 512)
        await backend.detach()
        if how == "inactive":
            await graph.set_active(None, active=False)
        else:
            readers: list[Any] = [
                GrowOptions(node_name="top", file="pre", read_only=True),
                options(
                    driver="preallocate",
                    node_name="pre",
                    file="file",
                    read_only=True,
                    prealloc_align=ALIGN,
                    prealloc_size=AHEAD,
                ),
                options(driver="file", node_name="file", filename=str(path), read_only=True),
            ]
            await graph.reopen(readers)
        assert path.stat().st_size == 4 * KIB + 512
        assert node.size == 4 * KIB + 512
        await graph.close()

    run(main)


def test_a_writer_who_comes_back_at_once_keeps_it(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, _ = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 512)
        length = path.stat().st_size
        top = backend.node
        await backend.detach()
        backend.attach(graph, top)
        await asyncio.sleep(0)
        await write_bytes(backend, 8 * KIB, b"\x22" * 512)
        assert path.stat().st_size == length
        await backend.detach()
        await graph.close()
        assert path.stat().st_size == 8 * KIB + 512

    run(main)


def test_extensions_undo_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, _ = await grown(graph, path)
        file: Any = graph.find("file")
        original = file.pwrite_zeroes
        turns = iter(range(1, 1000))

        async def later_and_later(*arguments: Any) -> None:
            for _ in range(20 * next(turns)):
                await asyncio.sleep(0)
            await original(*arguments)

        monkeypatch.setattr(file, "pwrite_zeroes", later_and_later)
        chosen = random.Random(3)
        model = bytearray(b"\x11" * 4 * KIB + bytes(4096 * KIB))
        blocks = chosen.sample(range(4 * KIB, 4096 * KIB, KIB), 200)
        blocks.sort(key=lambda block: block // (512 * KIB))
        work = []
        for block in blocks:
            data = chosen.randbytes(KIB)
            model[block : block + KIB] = data
            work.append(write_bytes(backend, block, data))
        await asyncio.gather(*work)
        await backend.detach()
        await graph.close()
        end = max(blocks) + KIB
        assert path.read_bytes() == model[:end]

    run(main)


def test_shrinking_and_growing(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * KIB)
        edge = backend.node.children["file"]
        await edge.truncate(64 * KIB)
        assert path.stat().st_size == node.size == 64 * KIB
        await edge.truncate(2 * KIB)
        assert path.stat().st_size == node.size == 2 * KIB
        await backend.detach()
        await graph.close()

    run(main)


@pytest.mark.parametrize("between", ["", "raw", "blkdebug"])
def test_it_can_be_taken_away_from_a_writer(tmp_path: Path, between: str) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        filters = ["pre"]
        if between:
            filters.insert(0, "between")
            role = "image" if between == "blkdebug" else "file"
            await graph.add(options(driver=between, node_name="between", **{role: "pre"}))
            await graph.reopen([GrowOptions(node_name="top", file="between")])
        for start in (4 * KIB, 5 * KIB):
            await write_bytes(backend, start, b"\x22" * 512)
            assert path.stat().st_size > start + 512
            await graph.reopen([GrowOptions(node_name="top", file="file")])
            assert path.stat().st_size == node.size == start + 512
            await write_bytes(backend, start + 512, b"\x33" * 512)
            assert path.stat().st_size == start + KIB
            await graph.reopen([GrowOptions(node_name="top", file=filters[0])])
        await graph.reopen([GrowOptions(node_name="top", file="file")])
        for name in filters:
            await graph.remove(name)
        await write_bytes(backend, 6 * KIB, b"\x44" * 512)
        await backend.detach()
        await graph.close()
        parts = (b"\x22" * 512 + b"\x33" * 512) * 2 + b"\x44" * 512
        assert path.read_bytes() == b"\x11" * 4 * KIB + parts

    run(main)


def test_a_filter_above_it_leaves_the_preallocation_alone(tmp_path: Path) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 512)
        length = path.stat().st_size
        assert length > node.size
        await graph.add(options(driver="raw", node_name="above", file="pre"))
        await graph.reopen([GrowOptions(node_name="top", file="above")])
        assert path.stat().st_size == length
        await backend.detach()
        await graph.close()

    run(main)


def test_it_stays_where_the_preallocation_cannot_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        graph, path = Graph(), tmp_path / "file"
        backend, node = await grown(graph, path)
        await write_bytes(backend, 4 * KIB, b"\x22" * 512)
        length = path.stat().st_size

        async def fail(_size: int) -> None:
            raise OSError(errno.EIO, "injected")

        with monkeypatch.context() as patch:
            patch.setattr(graph.find("file"), "truncate", fail)
            with pytest.raises(BlockError, match=r"^Node 'pre' can't be replaced: injected$"):
                await graph.reopen([GrowOptions(node_name="top", file="file")])
        assert path.stat().st_size == length
        await write_bytes(backend, 5 * KIB, b"\x33" * 512)
        assert node.size == 5 * KIB + 512
        await graph.reopen([GrowOptions(node_name="top", file="file")])
        assert path.stat().st_size == 5 * KIB + 512
        await backend.detach()
        await graph.close()

    run(main)
