# SPDX-License-Identifier: Apache-2.0
"""Reserving storage: it is allocated in the file below, and the content is unchanged."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, fails_with, options, run
from vhostblk.block.drivers.posix import FALLOC_KEEP_SIZE, FALLOC_UNSHARE_RANGE
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

MIB = 1 << 20
NAMES = ("a", "b", "c")


def make_sparse(path: Path) -> None:
    """Make a file with a hole between its first and last part."""
    with path.open("wb") as made:
        made.write(b"first" * 800)
        made.seek(MIB - 4096)
        made.write(b"last" * 1024)


def storage(path: Path) -> int:
    return path.stat().st_blocks * 512


async def open_files(tmp_path: Path, **above: Any) -> tuple[Graph, BlockNode, BlockBackend]:
    """Open files a, b and c, and a node above them, or file a itself."""
    graph = Graph()
    for name in NAMES:
        make_sparse(tmp_path / name)
        filename = str(tmp_path / name)
        await graph.add(options(driver="file", node_name=name, filename=filename))
    node = await graph.add(options(node_name="above", **above)) if above else graph.find("a")
    backend = BlockBackend("test", RW)
    backend.attach(graph, node)
    return graph, node, backend


async def close(graph: Graph, backend: BlockBackend) -> None:
    await backend.detach()
    await graph.close()


ABOVE: dict[str, dict[str, Any]] = {
    "file": {},
    "raw": {"driver": "raw", "file": "a"},
    "raw, a window": {"driver": "raw", "file": "a", "offset": 262144},
    "a filter": {"driver": "blkdebug", "image": "a"},
    "quorum": {"driver": "quorum", "children": list(NAMES), "vote_threshold": 2},
}


@pytest.mark.parametrize("name", ABOVE)
def test_what_is_reserved_has_storage_and_its_content(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_files(tmp_path, **ABOVE[name])
        before = (tmp_path / "a").read_bytes()
        used = NAMES if name == "quorum" else NAMES[:1]
        for each in used:
            assert storage(tmp_path / each) < 131072
        await node.reserve(131072, 262144)
        for each in used:
            assert storage(tmp_path / each) >= 262144
            assert (tmp_path / each).read_bytes() == before
        # Check that it was this range: punching a hole there frees all of the storage.
        start = 131072 + ABOVE[name].get("offset", 0)
        await graph.find("a").pwrite_zeroes(start, 262144, WriteFlags.MAY_UNMAP)
        assert storage(tmp_path / "a") < 131072
        await close(graph, backend)

    run(main)


def answer(node: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    """Make fallocate(2) on a file fail; return a list that gets the modes of its calls."""
    asked: list[int] = []

    def fallocate(_fd: int, mode: int, _offset: int, _length: int) -> Completion[int]:
        asked.append(mode)
        done: Completion[int] = Completion()
        done.set_result(-code)
        return done

    monkeypatch.setattr(node._aio, "fallocate", fallocate)
    return asked


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def main() -> None:
        graph, node, backend = await open_files(tmp_path)
        answer(node, monkeypatch, code)
        with fails_with(code):
            await node.reserve(0, MIB)
        monkeypatch.undo()
        await close(graph, backend)

    run(main)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_file_systems_that_cannot_reserve_are_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async def main() -> None:
        graph, node, backend = await open_files(tmp_path)
        asked = answer(node, monkeypatch, code)
        await node.reserve(0, MIB)
        await node.reserve(0, MIB)
        # EOPNOTSUPP is remembered.
        unshare, allocate = FALLOC_UNSHARE_RANGE | FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE
        assert asked == ([unshare, allocate] if code == errno.EOPNOTSUPP else [unshare] * 2)
        monkeypatch.undo()
        await close(graph, backend)

    run(main)


def test_storage_that_a_reflinked_copy_shares_is_no_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        graph, node, backend = await open_files(tmp_path)
        asked = answer(node, monkeypatch, 0)
        await node.reserve(0, MIB)
        assert asked == [FALLOC_UNSHARE_RANGE | FALLOC_KEEP_SIZE]
        monkeypatch.undo()
        await close(graph, backend)

    run(main)


def test_a_quorum_has_room_where_enough_of_its_children_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        graph, node, backend = await open_files(tmp_path, **ABOVE["quorum"])

        async def no_room(_offset: int, _length: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(graph.find("a"), "reserve", no_room)
        await node.reserve(0, MIB)
        monkeypatch.setattr(graph.find("b"), "reserve", no_room)
        with fails_with(errno.ENOSPC):
            await node.reserve(0, MIB)
        await close(graph, backend)

    run(main)
