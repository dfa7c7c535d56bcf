# SPDX-License-Identifier: Apache-2.0
"""Nodes get other data below them: nothing derived from the former data is used any more."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.locks import locked_bytes
from tests.block.support import (
    RW,
    change_bitmap,
    fails_with,
    options,
    read_bytes,
    run,
    write_bytes,
)
from tests.filters.drivers import GrowOptions, register
from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.node_bitmaps import AddBitmap, ClearBitmap
from vhostblk.block.drivers.file import FileNode
from vhostblk.block.drivers.qcow2.bitmap_store import BitmapStore
from vhostblk.block.drivers.qcow2.reloading import Reloading
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.schema.throttle import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

MIB = 1 << 20
#: A length of more than one cluster in each image.
PART = 200_000


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def make_images(directory: Path, **forms: str) -> None:
    """Make images by name; by default of 1 MiB in clusters of 64 KiB."""
    for name, form in forms.items():
        size, _, more = form.partition(",")
        qemu_img("create", "-f", "qcow2", "-o", more or "compat=1.1", directory / name, size)


def check_image(path: Path) -> None:
    """Check with qemu-img that there are no errors and no leaks."""
    qemu_img("check", "-f", "qcow2", path)


def file(directory: Path, name: str, **members: Any) -> dict[str, Any]:
    path = str(directory / name)
    return {"driver": "file", "node_name": f"{name}-file", "filename": path, **members}


def image(name: str, below: str, **members: Any) -> dict[str, Any]:
    return {"driver": "qcow2", "node_name": name, "file": below, **members}


@asynccontextmanager
async def graph_of(*definitions: dict[str, Any]) -> AsyncIterator[Graph]:
    """Make a graph; all nodes are closed at the end."""
    graph = Graph()
    graph.throttle_groups.add("g", UNLIMITED)
    for each in definitions:
        await graph.add(options(**each))
    yield graph
    for backend in graph.backends:
        await backend.detach()
    await graph.close()


def user(graph: Graph, name: str) -> BlockBackend:
    backend = BlockBackend(f"user of {name}", RW)
    backend.attach(graph, graph.find(name))
    return backend


async def content(graph: Graph, name: str) -> bytes:
    """Read the content of a node."""
    backend = BlockBackend("reader", Perm.CONSISTENT_READ)
    backend.attach(graph, graph.find(name))
    data = await read_bytes(backend, 0, backend.size)
    await backend.detach()
    return data


async def refused(graph: Graph, message: str, *definitions: dict[str, Any]) -> None:
    """Check that a reopen is refused with a message, and that nothing changes."""
    before = _state(graph)
    with pytest.raises(BlockError) as caught:
        await graph.reopen([options(**each) for each in definitions])
    assert str(caught.value) == message
    assert _state(graph) == before


def _state(graph: Graph) -> list[object]:
    return [
        (
            node.node_name,
            # Files are truncated when images give up writing.
            node.size if node.driver in ("qcow2", "quorum") else 0,
            node.limits,
            node.granted,
            node.pinned,
            node.bitmaps,
            node.recorders,
            node.options,
            [(edge.role, edge.node, edge.perm, edge.shared) for edge in node.children.values()],
        )
        for node in graph
    ]


def other_form(form: str) -> str:
    return f"2M,cluster_size=16k{',extended_l2=on' if form == 'extended' else ''}"


@pytest.mark.parametrize("form", ["plain", "extended"])
def test_an_image_goes_over_to_another_file(tmp_path: Path, form: str) -> None:
    make_images(tmp_path, a="1M", b=other_form(form))

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "b"), image("q", "b-file"), image("r", "a-file")
        ) as graph:
            for name, byte in (("q", b"b"), ("r", b"a")):
                backend = user(graph, name)
                await write_bytes(backend, 0, byte * PART)
                await backend.detach()
                await graph.remove(name)
            await graph.add(options(**image("disk", "a-file")))
            disk = user(graph, "disk")
            sizes: list[int] = []
            disk.on_resize(lambda: sizes.append(disk.size))
            assert await read_bytes(disk, 0, PART) == b"a" * PART
            await write_bytes(disk, 300_000, b"A" * 1000)
            await graph.reopen([options(**image("disk", "b-file"))])
            assert sizes == [2 * MIB]
            assert await read_bytes(disk, 0, PART + 10) == b"b" * PART + bytes(10)
            assert await read_bytes(disk, 300_000, 1000) == bytes(1000)
            await write_bytes(disk, MIB + 300_000, b"B" * 1000)
            await graph.reopen([options(**image("disk", "a-file"))])
            assert sizes == [2 * MIB, MIB]
            assert await read_bytes(disk, 300_000, 1000) == b"A" * 1000
            await graph.add(options(**image("other", "b-file")))
            other = user(graph, "other")
            assert await read_bytes(other, MIB + 300_000, 1000) == b"B" * 1000

    run(main)
    for name in ("a", "b"):
        check_image(tmp_path / name)


@pytest.mark.parametrize("failure", ["error", "cancelled"])
def test_images_write_on_when_a_former_child_cannot_be_closed(
    tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is final by then; the command fails."""
    make_images(tmp_path, a="1M", b="1M")
    inline = file(tmp_path, "a")
    del inline["node_name"]

    async def main() -> None:
        closing, go_on = asyncio.Event(), asyncio.Event()
        disk = {"driver": "qcow2", "node_name": "disk", "file": inline}
        async with graph_of(file(tmp_path, "b"), disk) as graph:
            backend, close = user(graph, "disk"), FileNode.close

            async def fail(node: FileNode) -> None:
                await close(node)
                closing.set()
                if failure == "error":
                    raise BlockError("closing failed")
                await go_on.wait()

            with monkeypatch.context() as patch:
                patch.setattr(FileNode, "close", fail)
                task = asyncio.ensure_future(graph.reopen([options(**image("disk", "b-file"))]))
                await closing.wait()
                if failure == "cancelled":
                    task.cancel()
                    await asyncio.sleep(0)
                    go_on.set()
                with pytest.raises((BlockError, asyncio.CancelledError)) as caught:
                    await task
                assert isinstance(caught.value, BlockError) == (failure == "error")
            await write_bytes(backend, 0, b"b" * PART)
            await backend.flush()

    run(main)
    check_image(tmp_path / "b")
    qemu_img("convert", "-O", "raw", tmp_path / "b", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == (b"b" * PART).ljust(MIB, b"\0")


def test_two_images_exchange_their_files(tmp_path: Path) -> None:
    """Both have users. Acknowledged data is in the file that each image had at that time."""
    make_images(tmp_path, a="1M", b="1M,cluster_size=4k")

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "b"), image("p", "a-file"), image("q", "b-file")
        ) as graph:
            p, q = user(graph, "p"), user(graph, "q")
            await write_bytes(p, 0, b"1" * PART)
            await write_bytes(q, 0, b"2" * PART)
            for below in (("b-file", "a-file"), ("a-file", "b-file"), ("b-file", "a-file")):
                await graph.reopen(
                    [options(**image(*each)) for each in zip("pq", below, strict=True)]
                )
            assert await read_bytes(p, 0, PART) == b"2" * PART
            assert await read_bytes(q, 0, PART) == b"1" * PART
            await write_bytes(p, PART, b"3" * PART)
            await write_bytes(q, PART, b"4" * PART)
            await q.flush()

    run(main)
    for name, first, second in (("a", b"1", b"4"), ("b", b"2", b"3")):
        check_image(tmp_path / name)
        qemu_img("convert", "-O", "raw", tmp_path / name, tmp_path / "raw")
        expected = first * PART + second * PART
        assert (tmp_path / "raw").read_bytes() == expected.ljust(MIB, b"\0")


def test_one_file_that_is_no_image_takes_all_back(tmp_path: Path) -> None:
    """The first image has loaded the new file by then, with its bitmaps."""
    make_images(tmp_path, a="1M", b="2M", c="1M")
    (tmp_path / "bad").write_bytes(bytes(MIB))
    qemu_img("bitmap", "--add", tmp_path / "a", "kept")
    names = ("a", "b", "c", "bad")

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in names), image("p", "a-file"), image("q", "c-file")
        ) as graph:
            p = user(graph, "p")
            await write_bytes(p, 0, b"x" * PART)
            await refused(
                graph, "Image is not in qcow2 format", image("p", "b-file"), image("q", "bad-file")
            )
            await write_bytes(p, PART, b"y" * PART)
            assert await read_bytes(p, 0, 2 * PART) == b"x" * PART + b"y" * PART
            (bitmap,) = graph.find("p").bitmaps
            assert bitmap.count == -(-2 * PART // bitmap.granularity) * bitmap.granularity

    run(main)
    for name in ("a", "b", "c"):
        check_image(tmp_path / name)
    assert (tmp_path / "bad").read_bytes() == bytes(MIB)


@pytest.mark.parametrize("change", ["throttle", "raw"])
def test_data_is_replaced_further_down(tmp_path: Path, change: str) -> None:
    """The image itself isn't named in the command."""
    make_images(tmp_path, a="1M", b="2M")
    first = (tmp_path / "a").read_bytes().ljust(MIB, b"\0")
    (tmp_path / "both").write_bytes(first + (tmp_path / "b").read_bytes().ljust(MIB, b"\0"))
    throttle = {"driver": "throttle", "node_name": "below", "throttle_group": "g"}
    raw: dict[str, Any] = {"driver": "raw", "node_name": "below", "file": "both-file", "size": MIB}
    steps = [raw, {**raw, "offset": MIB}]
    if change == "throttle":
        steps = [{**throttle, "file": "a-file"}, {**throttle, "file": "b-file"}]

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in ("a", "b", "both")), steps[0], image("q", "below")
        ) as graph:
            q = user(graph, "q")
            await write_bytes(q, 0, b"a" * PART)
            await graph.reopen([options(**steps[1])])
            assert q.size == 2 * MIB
            assert await read_bytes(q, 0, PART) == bytes(PART)
            await write_bytes(q, PART, b"b" * PART)
            await graph.reopen([options(**steps[0])])
            assert await read_bytes(q, 0, 2 * PART) == b"a" * PART + bytes(PART)
            await graph.reopen([options(**steps[1])])
            assert await read_bytes(q, 0, 2 * PART) == bytes(PART) + b"b" * PART

    run(main)


def test_an_image_in_an_image_follows(tmp_path: Path) -> None:
    """The upper image is read through the tables of the new lower one."""
    make_images(tmp_path, a="8M", b="8M", c="8M")
    lower = [image("lower", f"{name}-file") for name in ("a", "b")]

    async def main() -> None:
        async with graph_of(*(file(tmp_path, name) for name in "abc")) as graph:
            for each, size, byte in zip(lower, ("2M", "1M"), (b"1", b"2"), strict=True):
                await graph.add(options(**each))
                make_images(tmp_path, upper=size)
                backend = user(graph, "lower")
                await write_bytes(backend, MIB, b"unused")
                await write_bytes(backend, 0, (tmp_path / "upper").read_bytes())
                await backend.detach()
                await graph.add(options(**image("upper", "lower")))
                backend = user(graph, "upper")
                await write_bytes(backend, 0, byte * PART)
                await backend.detach()
                for name in ("upper", "lower"):
                    await graph.remove(name)
            await graph.add(options(**lower[0]))
            await graph.add(options(**image("upper", "lower")))
            disk = user(graph, "upper")
            for number, each in ((2, lower[1]), (1, lower[0])):
                await graph.reopen([options(**each)])
                assert disk.size == 2 * MIB // number
                assert await read_bytes(disk, 0, PART) == str(number).encode() * PART
            await refused(graph, "Image is not in qcow2 format", image("lower", "c-file"))
            assert await read_bytes(disk, 0, PART) == b"1" * PART

    run(main)
    for name in "abc":
        check_image(tmp_path / name)


def test_bitmaps_are_those_of_the_file(tmp_path: Path) -> None:
    """In a bitmap that the user added, all data is marked dirty."""
    make_images(tmp_path, a="1M", b="2M")
    for name in ("a", "b"):
        qemu_img("bitmap", "--add", tmp_path / name, f"of-{name}")

    def dirty(node: BlockNode) -> dict[str | None, int]:
        return {each.name: each.count for each in node.bitmaps}

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "b"), image("q", "a-file")
        ) as graph:
            node = graph.find("q")
            await change_bitmap(AddBitmap, graph, "q", "mine")
            await change_bitmap(AddBitmap, graph, "q", "kept", persistent=True)
            q = user(graph, "q")
            await write_bytes(q, 0, b"x")
            assert dirty(node) == {"kept": 65536, "mine": 65536, "of-a": 65536}
            await graph.reopen([options(**image("q", "b-file"))])
            assert dirty(node) == {"of-b": 0, "mine": 2 * MIB}
            await change_bitmap(ClearBitmap, graph, "q", "mine")
            await write_bytes(q, MIB, b"x")
            assert dirty(node) == {"of-b": 65536, "mine": 65536}
            await graph.reopen([options(**image("q", "a-file"))])
            assert dirty(node) == {"kept": 65536, "of-a": 65536, "mine": MIB}
            assert not any(each.inconsistent for each in node.bitmaps)
            assert node_bitmaps.find(node, "kept") in node.recorders

    run(main)


def test_a_window_that_moves_has_changed_altogether(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * MIB))
    window = {"driver": "raw", "node_name": "w", "file": "a-file", "size": MIB}

    async def main() -> None:
        async with graph_of(file(tmp_path, "a"), window) as graph:
            await change_bitmap(AddBitmap, graph, "w", "mine")
            (bitmap,) = graph.find("w").bitmaps
            await graph.reopen([options(**window, detect_zeroes="on")])
            assert bitmap.count == 0
            await graph.reopen([options(**window, offset=MIB)])
            assert bitmap.count == MIB

    run(main)


def test_a_filter_that_comes_or_goes_changes_no_data(tmp_path: Path) -> None:
    """It is allowed even below a node that relies on the data, and could not load other data."""
    make_images(tmp_path, a="1M")
    (tmp_path / "t").write_bytes(bytes(MIB))
    throttle = {"driver": "throttle", "node_name": "t1", "throttle_group": "g", "file": "a-file"}
    above = {"driver": "copy-before-write", "node_name": "cbw", "file": "q", "target": "t-file"}

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "t"), throttle, image("q", "a-file"), above
        ) as graph:
            node: Any = graph.find("q")
            cbw = user(graph, "cbw")
            await write_bytes(cbw, 0, b"x" * PART)
            before = node._image
            for name in ("t1", "a-file"):
                await graph.reopen([options(**image("q", name))])
                assert node._image is before
                await write_bytes(cbw, PART, name.encode())
                assert await read_bytes(cbw, 0, PART) == b"x" * PART

    run(main)
    check_image(tmp_path / "a")


def test_who_can_not_follow_refuses(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode() * MIB)
    throttle = {"driver": "throttle", "node_name": "t", "throttle_group": "g"}
    cbw = {"driver": "copy-before-write", "node_name": "cbw", "file": "t", "target": "b-file"}
    log = {"driver": "blklogwrites", "node_name": "log", "file": "c-file", "log": "t"}

    async def main() -> None:
        for above, role in ((cbw, "file"), ({**cbw, "file": "b-file", "target": "t"}, "target")):
            async with graph_of(
                *(file(tmp_path, name) for name in "abcd"), {**throttle, "file": "a-file"}, above
            ) as graph:
                message = (
                    f"Cannot replace the data of the {role} child of node 'cbw': "
                    "'copy-before-write' relies on it"
                )
                await refused(graph, message, {**throttle, "file": "d-file"})
        async with graph_of(
            *(file(tmp_path, name) for name in "abcd"), {**throttle, "file": "a-file"}, log
        ) as graph:
            message = (
                "Cannot replace the data of the log child of node 'log': 'blklogwrites' relies "
                "on it"
            )
            await refused(graph, message, {**throttle, "file": "d-file"})
            backend = user(graph, "log")
            await write_bytes(backend, 0, b"x" * 512)

    run(main)


def test_all_copies_of_a_disk_keep_one_length(tmp_path: Path) -> None:
    for name, size in (("a", MIB), ("b", MIB), ("c", MIB // 2), ("d", MIB // 2)):
        (tmp_path / name).write_bytes(name.encode() * size)
    copies = [{"driver": "throttle", "node_name": f"t{n}", "throttle_group": "g"} for n in range(2)]
    quorum = {"driver": "quorum", "node_name": "q", "children": ["t0", "t1"], "vote_threshold": 1}

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in "abcd"),
            {**copies[0], "file": "a-file"},
            {**copies[1], "file": "b-file"},
            quorum,
        ) as graph:
            q = user(graph, "q")
            message = "Could not refresh total sector count: Input/output error"
            await refused(graph, message, {**copies[0], "file": "c-file"})
            assert q.size == MIB
            await graph.reopen(
                [
                    options(**copies[0], file="c-file"),
                    options(**copies[1], file="d-file"),
                ]
            )
            assert q.size == MIB // 2

    run(main)


def test_a_backing_file_that_the_new_image_names_has_to_be_given(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"z" * MIB)
    make_images(tmp_path, a="1M")
    for name in ("b", "c"):
        qemu_img(*("create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", tmp_path / name))
    base = {"driver": "raw", "node_name": "base", "file": "base-file", "read_only": True}

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in ("a", "b", "c", "base")), base, image("q", "a-file")
        ) as graph:
            q = user(graph, "q")
            await refused(graph, "backing is missing for 'q'", image("q", "b-file"))
            await graph.reopen([options(**image("q", "b-file", backing="base"))])
            assert await read_bytes(q, 0, 10) == b"z" * 10
            await write_bytes(q, 0, b"b" * 10)
            await graph.reopen([options(**image("q", "c-file", backing="base"))])
            assert await read_bytes(q, 0, 20) == b"z" * 20
            await graph.reopen([options(**image("q", "b-file", backing=None))])
            assert await read_bytes(q, PART, 20) == bytes(20)
            await graph.reopen([options(**image("q", "a-file", backing=None))])
            assert await read_bytes(q, 0, 20) == bytes(20)

    run(main)


def test_below_an_image_that_opened_its_own_backing_file(tmp_path: Path) -> None:
    """No option names the backing file, so it has to be the same."""
    for name in ("base", "other"):
        (tmp_path / name).write_bytes(name.encode()[:1] * MIB)
    for name, below in (("a", "base"), ("b", "base"), ("c", "other")):
        qemu_img("create", "-f", "qcow2", "-b", tmp_path / below, "-F", "raw", tmp_path / name)
    make_images(tmp_path, d="1M")
    throttle = {"driver": "throttle", "node_name": "t", "throttle_group": "g"}

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in "abcd"),
            {**throttle, "file": "a-file"},
            image("q", "t"),
        ) as graph:
            q = user(graph, "q")
            await write_bytes(q, 0, b"a" * PART)
            for name in "cd":
                await refused(
                    graph, "backing is missing for 'q'", {**throttle, "file": f"{name}-file"}
                )
            await graph.reopen([options(**throttle, file="b-file")])
            assert await read_bytes(q, 0, PART) == b"b" * PART

    run(main)


def test_a_data_file_goes_with_its_image(tmp_path: Path) -> None:
    make_images(
        tmp_path,
        a=f"1M,data_file={tmp_path / 'data-a'}",
        b=f"1M,data_file={tmp_path / 'data-b'}",
        c="1M",
    )
    qemu_img("convert", "-f", "raw", "-O", "raw", tmp_path / "a", tmp_path / "copy")

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in ("a", "b", "c", "copy")), image("q", "a-file")
        ) as graph:
            q = user(graph, "q")
            await write_bytes(q, 0, b"a" * PART)
            await refused(graph, "data-file is missing for 'q'", image("q", "b-file"))
            message = "qcow2: an image can't gain or lose an external data file while in use"
            await refused(graph, message, image("q", "c-file"))
            assert await read_bytes(q, 0, PART) == b"a" * PART
            await graph.reopen([options(**image("q", "copy-file"))])
            assert await read_bytes(q, 0, PART) == bytes(PART)

    run(main)


def test_what_was_preallocated_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 4096)
    filtered = {"driver": "preallocate", "node_name": "p", "prealloc_size": MIB}
    throttle = {"driver": "throttle", "node_name": "t", "throttle_group": "g"}

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"),
            file(tmp_path, "b"),
            {**throttle, "file": "a-file"},
            {**filtered, "file": "t"},
        ) as graph:
            await graph.add(GrowOptions(node_name="top", file="p"))
            top = user(graph, "top")
            await write_bytes(top, 4096, b"1" * 512)
            assert (tmp_path / "a").stat().st_size > MIB
            await graph.reopen([options(**throttle, file="b-file")])
            assert (tmp_path / "a").read_bytes() == b"a" * 4096 + b"1" * 512
            assert await read_bytes(top, 0, 8192) == b"b" * 4096 + bytes(4096)
            await write_bytes(top, 6144, b"2" * 512)

    run(main)
    assert (tmp_path / "b").read_bytes() == b"b" * 4096 + bytes(2048) + b"2" * 512


def test_locks_are_kept_until_the_change_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another process could lock the former file, and the change could not be undone."""
    make_images(tmp_path, a="1M", b="1M")
    (tmp_path / "bad").write_bytes(bytes(MIB))
    locked: list[set[int]] = []
    read_header = Reloading._read_other_header

    async def observed(node: Reloading) -> Any:
        locked.append(locked_bytes(tmp_path / "a"))
        graph = node._graph
        with pytest.raises(BlockError, match="'q' is busy: nodes are being reopened"):
            user(graph, "q")
        return await read_header(node)

    monkeypatch.setattr(Reloading, "_read_other_header", observed)

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in ("a", "b", "bad")), image("q", "a-file")
        ) as graph:
            user(graph, "q")
            held = locked_bytes(tmp_path / "a")
            assert held
            await refused(graph, "Image is not in qcow2 format", image("q", "bad-file"))
            assert locked_bytes(tmp_path / "a") == held
            assert not locked_bytes(tmp_path / "bad")
            await graph.reopen([options(**image("q", "b-file"))])
            assert locked == [held, held]
            assert not locked_bytes(tmp_path / "a")
            assert locked_bytes(tmp_path / "b") == held

    run(main)


def test_a_write_that_fails_on_the_way_leaves_the_image_where_it_was(tmp_path: Path) -> None:
    """Metadata in memory can't be written to the former file, so the change is refused."""
    make_images(tmp_path, a="1M", b="1M")
    failing = {
        "driver": "blkdebug",
        "node_name": "bad",
        "image": "a-file",
        "inject_error": [{"event": "none", "iotype": "flush", "errno": 5, "once": True}],
    }

    async def main() -> None:
        async with graph_of(
            file(tmp_path, "a"), file(tmp_path, "b"), failing, image("q", "bad")
        ) as graph:
            q = user(graph, "q")
            await write_bytes(q, 0, b"x" * PART)
            with pytest.raises(BlockError, match="Input/output error"):
                await graph.reopen([options(**image("q", "b-file"))])
            assert graph.find("q").children["file"].node.node_name == "bad"
            assert await read_bytes(q, 0, PART) == b"x" * PART
            await q.flush()
            await graph.reopen([options(**image("q", "b-file"))])
            assert await read_bytes(q, 0, PART) == bytes(PART)

    run(main)
    check_image(tmp_path / "a")
    qemu_img("convert", "-O", "raw", tmp_path / "a", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes()[:PART] == b"x" * PART


@pytest.mark.parametrize("where", ["the new file", "the former file"])
def test_without_its_marks_an_image_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Its bitmaps would miss the writes. The published table allows no writes, either."""
    make_images(tmp_path, a="1M", b="1M")
    (tmp_path / "bad").write_bytes(bytes(MIB))
    for name in ("a", "b"):
        qemu_img("bitmap", "--add", tmp_path / name, "kept")
    below = "b-file" if where == "the new file" else "bad-file"

    async def fail(_store: BitmapStore) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        async with graph_of(
            *(file(tmp_path, name) for name in ("a", "b", "bad")), image("q", "a-file")
        ) as graph:
            q = user(graph, "q")
            await write_bytes(q, 0, b"x" * PART)
            await graph.reopen([options(**image("q", "b-file"))])
            await write_bytes(q, 0, b"x" * PART)
            await graph.reopen([options(**image("q", "a-file"))])
            assert await read_bytes(q, 0, PART) == b"x" * PART
            with monkeypatch.context() as patch:
                patch.setattr(BitmapStore, "mark_in_use", fail)
                with pytest.raises(BlockError):
                    await graph.reopen([options(**image("q", below))])
            assert await read_bytes(q, 0, PART) == b"x" * PART
            for offset in (100, 65536, MIB - 512):
                with fails_with(errno.EIO):
                    await write_bytes(q, offset, b"y")
            extents = q.extent_map()
            assert extents is None or not extents.writable
            assert await read_bytes(q, 0, PART) == b"x" * PART

    run(main)
    for name in ("a", "b"):
        check_image(tmp_path / name)
