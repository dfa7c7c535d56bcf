# SPDX-License-Identifier: Apache-2.0
"""Nodes above and below an overlay that replaces a node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.locks import locked_bytes
from tests.block.support import RW, options, read_bytes, run, write_bytes
from tests.block.test_other_data import (
    MIB,
    PART,
    check_image,
    content,
    file,
    graph_of,
    image,
    make_images,
    qemu_img,
    user,
)
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.actions import perform
from vhostblk.block.graph.overlay import OverlayAction
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode


async def append(graph: Graph, base: str, overlay: str) -> None:
    await perform(graph, [OverlayAction(graph, graph.find(base), graph.find(overlay))])


def images(directory: Path, *names: str) -> list[dict[str, Any]]:
    return [
        each
        for name in names
        for each in (file(directory, name), image(name, f"{name}-file", backing=None))
    ]


def test_an_image_below_another_keeps_its_length(tmp_path: Path) -> None:
    """Else data that only the lower image has would be cut off, or replaced by zeroes."""
    make_images(tmp_path, base="1M", top="1M")

    async def main() -> None:
        async with graph_of(*images(tmp_path, "base", "top")) as graph:
            base = user(graph, "base")
            await write_bytes(base, 0, b"x" * MIB)
            await base.detach()
            await append(graph, "base", "top")
            top = user(graph, "top")
            for name in ("base", "base-file"):
                for size in (0, 4096, 2 * MIB):
                    with pytest.raises(BlockError) as caught:
                        await graph.resize(graph.find(name), size)
                    text = str(caught.value)
                    assert "node is used as backing hd of 'top'" in text or "'resize'" in text
            assert await read_bytes(top, 0, MIB) == b"x" * MIB
            await graph.resize(graph.find("top"), MIB // 2)
            assert await read_bytes(top, 0, MIB // 2) == b"x" * (MIB // 2)

    run(main)


def test_copy_on_read_goes_on_above_an_overlay(tmp_path: Path) -> None:
    """Writes to the overlay are serialised with copies, as writes to the former image were."""
    make_images(tmp_path, base="1M", top="1M")
    above = {"driver": "copy-on-read", "node_name": "cor", "file": "base"}

    async def main() -> None:
        async with graph_of(*images(tmp_path, "base", "top"), above) as graph:
            cor = user(graph, "cor")
            await write_bytes(cor, 0, b"x" * PART)
            await append(graph, "base", "top")
            assert await read_bytes(cor, 0, PART) == b"x" * PART
            await write_bytes(cor, 100, b"y")
            assert await read_bytes(cor, 0, 200) == b"x" * 100 + b"y" + b"x" * 99
            assert graph.find("top").write_tracker is not None

    run(main)
    check_image(tmp_path / "top")


def test_what_compresses_needs_an_overlay_that_can(tmp_path: Path) -> None:
    make_images(tmp_path, base="1M", top="1M,cluster_size=16k")
    above = {"driver": "compress", "node_name": "c", "file": "base"}

    async def main() -> None:
        async with graph_of(*images(tmp_path, "base", "top"), above) as graph:
            backend = user(graph, "c")
            await write_bytes(backend, 0, b"x" * PART)
            top = graph.find("top")
            flags, top.native_flags = top.native_flags, type(top.native_flags)(0)
            with pytest.raises(BlockError, match="Compression is not supported"):
                await append(graph, "base", "top")
            top.native_flags = flags
            await append(graph, "base", "top")
            assert graph.find("c").limits.request_alignment == 16 << 10
            await write_bytes(backend, 100, b"y" * 100)
            assert await read_bytes(backend, 0, 300) == b"x" * 100 + b"y" * 100 + b"x" * 100

    run(main)


def test_a_snapshot_in_the_making_bears_an_empty_overlay_only(tmp_path: Path) -> None:
    make_images(tmp_path, base="1M", empty="1M", full="1M", longer="2M")
    (tmp_path / "t").write_bytes(bytes(MIB))
    above: list[dict[str, Any]] = [
        {"driver": "copy-before-write", "node_name": "cbw", "file": "base", "target": "t-file"},
        {"driver": "snapshot-access", "node_name": "snap", "file": "cbw", "read_only": True},
    ]
    names = ("base", "empty", "full", "longer")

    async def main() -> None:
        async with graph_of(file(tmp_path, "t"), *images(tmp_path, *names), *above) as graph:
            full = user(graph, "full")
            await write_bytes(full, 5 << 16, b"z")
            await full.detach()
            cbw = user(graph, "cbw")
            await write_bytes(cbw, 0, b"x" * PART)
            before = await content(graph, "snap")
            for name, what in (("full", "data"), ("longer", "a size")):
                with pytest.raises(BlockError) as caught:
                    await append(graph, "base", name)
                assert str(caught.value) == (
                    f"The overlay has {what} of its own, but node 'cbw' needs that of 'base'"
                )
                assert "backing" not in graph.find(name).children
            await append(graph, "base", "empty")
            await write_bytes(cbw, 100, b"y" * PART)
            assert await content(graph, "snap") == before
            assert await read_bytes(cbw, 0, 200) == b"x" * 100 + b"y" * 100

    run(main)


def test_tables_above_an_overlay_stay_right(tmp_path: Path) -> None:
    """The file of an image itself gets an overlay."""
    make_images(tmp_path, base="1M")
    os.truncate(tmp_path / "base", 4 * MIB)
    make_images(tmp_path, top="4M", full="4M")
    upper = [
        {"driver": "raw", "node_name": "raw", "file": "base-file"},
        image("upper", "raw"),
    ]

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "base"), *images(tmp_path, "top", "full"), *upper
        ) as graph:
            full = user(graph, "full")
            await write_bytes(full, 0, b"no image")
            await full.detach()
            disk = user(graph, "upper")
            await write_bytes(disk, 0, b"x" * PART)
            size = graph.find("raw").size
            for name in ("top", "full"):
                if size != 4 * MIB:
                    await graph.resize(graph.find(name), size)
            with pytest.raises(BlockError, match="has data of its own, but node 'upper' needs"):
                await append(graph, "raw", "full")
            await append(graph, "raw", "top")
            await write_bytes(disk, PART, b"y" * PART)
            assert await read_bytes(disk, 0, 2 * PART) == b"x" * PART + b"y" * PART
            await disk.flush()

    run(main)
    qemu_img("check", "-f", "qcow2", tmp_path / "top")


def test_an_overlay_has_no_storage_yet_for_tables_above_it(tmp_path: Path) -> None:
    """So the image above reserves storage again, before data needs a table in memory."""
    make_images(tmp_path, base="1M", top="1M")
    os.truncate(tmp_path / "base", MIB)
    nodes = [
        file(tmp_path, "base"),
        {"driver": "raw", "node_name": "raw", "file": "base-file"},
        image("upper", "raw"),
    ]

    async def main() -> None:
        async with graph_of(*nodes, *images(tmp_path, "top")) as graph:
            disk = user(graph, "upper")
            await write_bytes(disk, 0, b"x" * PART)
            upper: Any = graph.find("upper")
            tables = upper._image.tables.slices.values()
            assert any(each.placed for each in tables)
            await graph.resize(graph.find("top"), graph.find("raw").size)
            await append(graph, "raw", "top")
            assert not any(each.placed for each in tables)
            assert not upper._image.places._known
            await write_bytes(disk, PART, b"y" * PART)
            assert any(each.placed for each in tables)
            assert await read_bytes(disk, 0, 2 * PART) == b"x" * PART + b"y" * PART

    run(main)


class Failing:
    """An action that checks locks, then fails."""

    def __init__(self, path: Path) -> None:
        self.locked: set[int] = set()
        self._path = path

    def nodes(self) -> list[BlockNode]:
        return []

    async def prepare(self) -> None:
        self.locked = locked_bytes(self._path)
        raise BlockError("no")

    async def commit(self) -> None:
        raise AssertionError

    async def abort(self) -> None:
        raise AssertionError


def test_locks_are_kept_until_all_of_a_transaction_is_done(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(MIB))
    make_images(tmp_path, top="1M")

    async def main() -> None:
        async with graph_of(file(tmp_path, "base"), *images(tmp_path, "top")) as graph:
            base = user(graph, "base-file")
            held, failing = locked_bytes(tmp_path / "base"), Failing(tmp_path / "base")
            overlay = OverlayAction(graph, graph.find("base-file"), graph.find("top"))
            with pytest.raises(BlockError, match=r"^no$"):
                await perform(graph, [overlay, failing])
            assert held
            assert failing.locked >= held
            assert locked_bytes(tmp_path / "base") == held
            assert base.node.node_name == "base-file"
            await perform(graph, [overlay])
            assert locked_bytes(tmp_path / "base") < held
            await write_bytes(base, 0, b"x")

    run(main)


def test_locked_files_stay_locked_after_a_snapshot(tmp_path: Path) -> None:
    """No other process may write to an image that became a backing image."""
    make_images(tmp_path, base="1M", top="1M")

    async def main() -> None:
        async with graph_of(*images(tmp_path, "base", "top")) as graph:
            top = user(graph, "base")
            await append(graph, "base", "top")
            assert top.node.node_name == "top"
            assert not graph.find("base").pinned
            unshared = {200 + flag.bit_length() - 1 for flag in (Perm.WRITE, Perm.RESIZE)}
            assert unshared <= locked_bytes(tmp_path / "base")

    run(main)


def test_what_is_reopened_with_its_parent_stays_an_overlay(tmp_path: Path) -> None:
    """Its definition is older than the snapshot, and has no backing image."""
    make_images(tmp_path, base="1M", top="1M")
    inline = {"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": None}
    above: dict[str, Any] = {"driver": "raw", "node_name": "raw", "file": inline}

    async def main() -> None:
        async with graph_of(*images(tmp_path, "base"), file(tmp_path, "top"), above) as graph:
            base = user(graph, "base")
            await write_bytes(base, 0, b"x" * PART)
            await base.detach()
            await append(graph, "base", "top")
            raw = user(graph, "raw")
            for changed in ({"detect_zeroes": "on"}, {"offset": 512}):
                await graph.reopen([options(**{**above, **changed, "file": "top"})])
                assert graph.find("top").children["backing"].node is graph.find("base")
                assert await read_bytes(raw, 0, 1000) == b"x" * 1000
                await write_bytes(raw, 100_000, b"y")
                assert await read_bytes(raw, 150_000, 1000) == b"x" * 1000

    run(main)


def test_reopening_by_name_is_no_way_round(tmp_path: Path) -> None:
    """A window that is too small for an image above it is refused, too."""
    make_images(tmp_path, a="2M", b="1M")
    window = {"driver": "raw", "node_name": "w", "file": "a", "offset": MIB, "size": MIB}

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "b"), image("a", "a-file"), window
        ) as graph:
            w = user(graph, "w")
            await write_bytes(w, 0, b"w")
            with pytest.raises(BlockError, match=r"The sum of offset .* and size .*"):
                await graph.reopen([options(**image("a", "b-file"))])
            assert await read_bytes(w, 0, 2) == b"w\0"
            await write_bytes(w, 1, b"w")
            assert w.edge.perm >= RW

    run(main)
