# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps that images keep: what vhostblk writes QEMU reads, and the other way round.

Wherever the machine stops, a bitmap in the file is right or marked as in use.
"""

from __future__ import annotations

import errno
import json
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.record import Change, RecordingNode, crash, opened_on
from integration.qcow2.tools import check, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import RW, change_bitmap, options
from tests.qmp_block.support import Call, theirs
from tests.qmp_exports.daemons import QEMU_7, QEMU_10
from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.node_bitmaps import AddBitmap, EnableBitmap, RemoveBitmap
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

SIZE = (3 << 20) + 512
FORMS = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,lazy_refcounts=on",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=2M",
]


def _create(path: Path, form: str, size: int = SIZE) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, size)


def _listed(path: Path) -> dict[str, tuple[int, set[str]]]:
    """Return what qemu-img says of the bitmaps: granularity and flags."""
    info = json.loads(qemu_img("info", "-U", "--output=json", path))
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return {each["name"]: (each["granularity"], set(each["flags"])) for each in bitmaps}


def _hashes_by_qemu(path: Path, *names: str) -> list[str]:
    """Return what QEMU's daemon finds in the bitmaps."""
    file = {"driver": "file", "filename": str(path)}
    calls: list[Call] = [
        ("blockdev-add", {"driver": "qcow2", "node-name": "q", "read-only": True, "file": file}),
        *(("x-debug-block-dirty-bitmap-sha256", {"node": "q", "name": name}) for name in names),
    ]
    program = QEMU_10 if QEMU_10.available else QEMU_7
    return [answer["return"]["sha256"] for answer in theirs(program, calls)[1:]]


def _hash(node: BlockNode, name: str) -> str:
    bitmap = node_bitmaps.find(node, name)
    assert bitmap is not None
    return bitmap.sha256()


def _graph(node: BlockNode) -> Graph:
    graph: Graph = node._graph  # type: ignore[attr-defined]
    return graph


@pytest.mark.parametrize("form", FORMS)
def test_bitmaps_go_to_qemu_and_back(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk.qcow2"
    _create(path, form)
    rng = random.Random(form)
    known: dict[str, Any] = {}

    async def turn(number: int) -> None:
        async with opened(path, backing=None) as (node, backend):
            graph = _graph(node)
            assert {str(each.name): each.sha256() for each in node.bitmaps} == known
            name, granularity = f"b{number}", 1 << rng.choice([9, 12, 16, 25])
            await change_bitmap(AddBitmap, graph, "disk", name, granularity, persistent=True)
            await change_bitmap(AddBitmap, graph, "disk", "forgotten")
            if number == 2:
                await change_bitmap(EnableBitmap, graph, "disk", "b0", enabled=False)
                await change_bitmap(RemoveBitmap, graph, "disk", "b1")
            for _ in range(rng.randrange(1, 20)):
                offset = rng.randrange(SIZE - 4096)
                await write(backend, offset, b"x" * rng.choice([1, 512, 4096]))
            await change_bitmap(RemoveBitmap, graph, "disk", "forgotten")
            known.clear()
            known.update({str(each.name): each.sha256() for each in node.bitmaps})

    for number in range(4):
        run(turn(number))
        check(path)
        auto = {name: {"auto"} if name != "b0" or number < 2 else set() for name in known}
        assert {name: flags for name, (_, flags) in _listed(path).items()} == auto
        assert _hashes_by_qemu(path, *known) == list(known.values())
        # QEMU records, and writes them in its turn.
        qemu_io(path, f"write -q {rng.randrange(SIZE >> 9) << 9} 512")
        known.update(zip(known, _hashes_by_qemu(path, *known), strict=True))


def test_what_qemu_recorded_is_there(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    _create(path, "cluster_size=4k")
    qemu_img("bitmap", "--add", "-g", "8k", path, "b")
    qemu_img("bitmap", "--add", "--disable", path, "off")
    qemu_io(path, "write -q 100k 1", "write -q -z 2M 4k")

    async def look() -> None:
        async with opened(path, Perm.CONSISTENT_READ, backing=None) as (node, _):
            bitmap = node_bitmaps.find(node, "b")
            assert bitmap is not None
            assert bitmap.read_only
            assert bitmap.granularity == 8192
            assert list(bitmap.areas()) == [(96 << 10, 8192), (2 << 20, 8192)]
            off = node_bitmaps.find(node, "off")
            assert off is not None
            assert off.disabled
            with pytest.raises(
                BlockError, match=r"^Bitmap 'b' is readonly and cannot be modified$"
            ):
                await change_bitmap(RemoveBitmap, _graph(node), "disk", "b")

    run(look())
    assert _listed(path) == {"b": (8192, {"auto"}), "off": (4096, set())}


def test_a_bitmap_in_use_is_inconsistent(tmp_path: Path) -> None:
    path, copy = tmp_path / "disk.qcow2", tmp_path / "copy.qcow2"
    _create(path, "cluster_size=4k")
    qemu_img("bitmap", "--add", path, "b")

    async def main() -> None:
        async with opened(path, backing=None):
            copy.write_bytes(path.read_bytes())
        assert _listed(copy) == {"b": (4096, {"auto", "in-use"})}
        async with opened(copy, backing=None) as (node, backend):
            bitmap = node_bitmaps.find(node, "b")
            assert bitmap is not None
            assert bitmap.inconsistent
            assert bitmap.disabled
            await write(backend, 0, b"x")
            with pytest.raises(BlockError, match="inconsistent and cannot be used"):
                await change_bitmap(EnableBitmap, _graph(node), "disk", "b", enabled=True)
            with pytest.raises(OSError, match="inconsistent and cannot be used"):
                await backend.truncate(2 * SIZE)
        assert _listed(copy) == {"b": (4096, {"auto", "in-use"})}
        async with opened(copy, backing=None) as (node, _):
            await change_bitmap(RemoveBitmap, _graph(node), "disk", "b")

    run(main())
    assert not _listed(copy)
    check(copy)


def test_bitmaps_outlive_reopening_handing_over_and_resizing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    _create(path, "cluster_size=4k", 1 << 20)

    async def main() -> None:
        graph = Graph()
        file = {"driver": "file", "filename": str(path)}
        members = {"driver": "qcow2", "node_name": "disk", "file": file}
        node = await graph.add(options(**members))
        for name in ("a", "b"):
            await change_bitmap(AddBitmap, graph, "disk", name, 4096, persistent=True)
        await change_bitmap(AddBitmap, graph, "disk", "own", 4096)

        async def put(offset: int) -> None:
            backend = BlockBackend("test", RW)
            backend.attach(graph, node)
            await write(backend, offset, b"x")
            await backend.detach()

        def dirty(name: str) -> list[tuple[int, int]]:
            bitmap = node_bitmaps.find(node, name)
            assert bitmap is not None
            return list(bitmap.areas())

        await put(0)
        await graph.reopen([options(**members, read_only=True)])
        check(path)
        assert {name: flags for name, (_, flags) in _listed(path).items()} == {
            "a": {"auto"},
            "b": {"auto"},
        }
        await change_bitmap(EnableBitmap, graph, "disk", "b", enabled=False)
        await graph.reopen([options(**members)])
        await put(8192)
        assert dirty("a") == [(0, 4096), (8192, 4096)]
        assert dirty("b") == [(0, 4096)]
        assert dirty("own") == [(0, 4096), (8192, 4096)]
        # What can't become read-only goes on, and records.
        holder = BlockBackend("writer", RW)
        holder.attach(graph, node)
        with pytest.raises(BlockError):
            await graph.reopen([options(**members, read_only=True)])
        assert all("in-use" in flags for _, flags in _listed(path).values())
        await holder.detach()
        await put(12288)
        assert dirty("a") == [(0, 4096), (8192, 8192)]
        await graph.set_active("disk", active=False)
        assert [each.name for each in node.bitmaps] == ["own"]
        qemu_io(path, "write -q 64k 4k")
        await graph.set_active("disk", active=True)
        assert dirty("a") == [(0, 4096), (8192, 8192), (65536, 4096)]
        await graph.resize(node, 5 << 20)
        await put((5 << 20) - 1)
        await graph.resize(node, 6 << 20)
        assert dirty("a")[-1] == ((5 << 20) - 4096, 4096)
        await graph.close()

    run(main())
    check(path)
    hashes = _hashes_by_qemu(path, "a", "b")

    async def look() -> None:
        async with opened(path) as (node, _):
            assert [_hash(node, "a"), _hash(node, "b")] == hashes

    run(look())


@pytest.mark.parametrize("form", ["cluster_size=512", "cluster_size=4k"])
def test_a_bitmap_that_is_set_all_over_is_kept(tmp_path: Path, form: str) -> None:
    path, size = tmp_path / "disk.qcow2", 24 << 20
    _create(path, form, size)
    hashes: list[str] = []

    async def main() -> None:
        async with opened(path) as (node, backend):
            await change_bitmap(AddBitmap, _graph(node), "disk", "b", 512, persistent=True)
            await backend.pwrite_zeroes(1536, size - 4096)  # some of its clusters, not the last
            hashes.append(_hash(node, "b"))
        async with opened(path) as (node, _):
            hashes.append(_hash(node, "b"))

    run(main())
    check(path)
    assert [*hashes, *_hashes_by_qemu(path, "b")] == 3 * hashes[:1]


def test_images_without_room_for_bitmaps_say_so(tmp_path: Path) -> None:
    old, big = tmp_path / "old.qcow2", tmp_path / "big.qcow2"
    _create(old, "compat=0.10")
    _create(big, "cluster_size=2M", 1 << 44)

    async def main() -> None:
        async with opened(old) as (node, _):
            with pytest.raises(BlockError) as caught:
                await change_bitmap(AddBitmap, _graph(node), "disk", "b", persistent=True)
            assert str(caught.value) == (
                "Can't make bitmap 'b' persistent in 'disk': "
                "Cannot store dirty bitmaps in qcow2 v2 files"
            )
        async with opened(big) as (node, _):
            with pytest.raises(BlockError) as caught:
                await change_bitmap(AddBitmap, _graph(node), "disk", "b", 512, persistent=True)
            assert str(caught.value) == (
                "Can't make bitmap 'b' persistent in 'disk': "
                "Too much space will be occupied by the bitmap. Use larger granularity"
            )

    run(main())


@pytest.mark.parametrize("form", FORMS[1:3])
def test_after_a_crash_bitmaps_are_right_or_marked(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk.qcow2"
    _create(path, form)
    for name in ("b", "removed"):
        qemu_img("bitmap", "--add", "-g", "4k", path, name)
    qemu_io(path, "write -q -P 1 0 8k", "write -q -P 1 1M 4k")
    before, rng = path.read_bytes(), random.Random(form)
    marks = _marks(path)
    disk = run(_content(path))
    log = run(_use(before, rng))
    # Where the bitmaps change, which is at both ends, and some points between.
    end = range(len(log) - 25, len(log) + 1)
    cuts = {*rng.sample(range(12), 5), *rng.sample(end, 10), *rng.sample(range(len(log)), 3)}
    for cut in sorted(cuts):
        path.write_bytes(crash(before, log[:cut], rng))
        qemu_img("check", "-q", "-r", "leaks" if "lazy" not in form else "all", path, check=False)
        check(path)
        for name, dirty in _marks(path).items():
            if dirty is None:
                continue
            now = run(_content(path))
            changed = {
                at >> 12 for at in range(0, SIZE, 512) if now[at : at + 512] != disk[at : at + 512]
            }
            former = marks.get(name) or set()
            assert former | changed <= dirty, (cut, name)
            # A write that never got there may be marked, where the run came to its end.
            assert cut > len(log) - 25 or dirty == former, (cut, name)


class Dying(RecordingNode):
    """A file of which requests that fail change nothing."""

    def _log(self, change: tuple[int, bytes | None]) -> None:
        if not self.fails_at(self.requests - 1):
            super()._log(change)


def test_a_bitmap_that_may_be_valid_in_the_file_is_marked_before_writes_go_on(
    tmp_path: Path,
) -> None:
    """It was stored, and the new header got to the file, but what was to say so has failed."""
    path = tmp_path / "disk.qcow2"
    _create(path, "cluster_size=4k")
    qemu_io(path, "write -q -P 1 0 64k")
    qemu_img("bitmap", "--add", "-g", "4k", path, "b")
    before, states = path.read_bytes(), list[bytes]()

    async def main(number: int) -> bool:
        """Have requests fail from one on; tell whether there were any."""
        file = Dying(before)
        async with opened_on(file) as (node, backend):
            await write(backend, 0, b"w" * 512)
            first = file.requests + number
            file.fails_at = lambda request: errno.EIO if request >= first else 0
            with suppress(OSError):
                await node.give_up_writing()
            failed = file.requests > first
            file.fails_at = lambda _: 0
            await node.resume_writing()
            with suppress(OSError):
                await write(backend, 32768, b"w" * 512)
                states.append(bytes(file.data))
        return failed

    number = 0
    while run(main(number)):
        number += 1
    assert number > 5
    for state in states:
        path.write_bytes(state)
        dirty = _marks(path)["b"]
        assert dirty is None or {0, 8} <= dirty


async def _use(before: bytes, rng: random.Random) -> list[Change]:
    """Write and close; return all that happened to the file."""
    graph = Graph()
    file = RecordingNode(before)
    graph._nodes["record"] = file  # not by a driver's name: it is no driver
    await graph.add(options(driver="qcow2", node_name="disk", file="record", backing=None))
    backend = BlockBackend("test", RW)
    backend.attach(graph, graph.find("disk"))
    await change_bitmap(AddBitmap, graph, "disk", "added", 4096, persistent=True)
    for _ in range(12):
        await write(backend, rng.randrange(SIZE - 4096), rng.randbytes(4096))
    await backend.flush()
    await change_bitmap(RemoveBitmap, graph, "disk", "removed")
    await write(backend, rng.randrange(SIZE - 4096), rng.randbytes(4096))
    await backend.detach()
    await graph.close()
    return file.log


async def _content(path: Path) -> bytes:
    async with opened(path, Perm.CONSISTENT_READ, backing=None) as (_, backend):
        return await read(backend, 0, SIZE)


def _marks(path: Path) -> dict[str, set[int] | None]:
    """Return the granules that are dirty; None of bitmaps that are not to be used."""

    async def look() -> dict[str, set[int] | None]:
        async with opened(path, Perm.CONSISTENT_READ, backing=None) as (node, _):
            return {
                str(each.name): None
                if each.inconsistent
                else {at >> 12 for at in range(0, SIZE, 4096) if each.is_dirty(at)}
                for each in node.bitmaps
            }

    return run(look())
