# SPDX-License-Identifier: Apache-2.0
"""`copy-before-write` and `snapshot-access`: the disk as it was, whatever happens to it."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, change_bitmap, fails_with, options, read_bytes, run, write_bytes
from tests.filters.drivers import CowNode, CowOptions, register
from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.node_bitmaps import AddBitmap
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.engine.extents import Treatment

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.io.flags import WriteFlags
    from vhostblk.block.io.iovec import IoVec

KIB = 1 << 10
CLUSTER = 64 * KIB
SIZE = 16 * CLUSTER + 512


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


class Scheme:
    """A disk, its filter, a target in memory, and the snapshot's reader."""

    def __init__(self, graph: Graph, disk: BlockBackend, reader: BlockBackend, content: bytes):
        self.graph = graph
        self.disk = disk
        self.reader = reader
        self.content = content
        self.model = bytearray(content)
        node: Any = graph.find("target")
        self.target: CowNode = node

    async def write(self, offset: int, data: bytes) -> None:
        await write_bytes(self.disk, offset, data)
        self.model[offset : offset + len(data)] = data

    async def snapshot(self) -> bytes:
        return await read_bytes(self.reader, 0, SIZE)


async def scheme(
    path: Path,
    chosen: dict[int, int] | None = None,
    granularity: int = CLUSTER,
    *,
    busy: bool = False,
    content: bytes | None = None,
    **members: Any,
) -> Scheme:
    """Open it all; `chosen` says, by offset, how many bytes a bitmap for the filter has noted."""
    content = random.Random(1).randbytes(SIZE) if content is None else content
    path.write_bytes(content)  # noqa: ASYNC240
    graph = Graph()
    file = {"driver": "file", "node_name": "file", "filename": str(path)}
    await graph.add(options(**file, discard=members.get("discard", "ignore")))
    if chosen is not None:
        await change_bitmap(AddBitmap, graph, "file", "chosen", granularity)
        _, bitmap = node_bitmaps.lookup(graph, "file", "chosen")
        for offset, length in chosen.items():
            bitmap.mark(offset, length)
        bitmap.busy = busy
        members["bitmap"] = {"node": "file", "name": "chosen"}
    await graph.add(CowOptions(node_name="target", size=SIZE, cluster_size=512))
    cbw = await graph.add(
        options(
            driver="copy-before-write", node_name="cbw", file="file", target="target", **members
        )
    )
    discards: dict[str, Any] = {"discard": "unmap"}
    access = await graph.add(
        options(driver="snapshot-access", node_name="snap", file="cbw", **discards)
    )
    disk, reader = BlockBackend("disk", RW), BlockBackend("reader", RW)
    disk.attach(graph, cbw)
    reader.attach(graph, access)
    return Scheme(graph, disk, reader, content)


def test_each_cluster_is_copied_once(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        await s.write(CLUSTER + 512, b"a" * 512)
        await s.write(CLUSTER + 4096, b"b" * 512)
        await s.write(3 * CLUSTER - 512, b"c" * 1024)
        await s.write(SIZE - 512, b"d" * 512)
        copied = [(offset, length) for offset, length, _ in s.target.writes]
        assert copied == [
            (CLUSTER, CLUSTER),
            (2 * CLUSTER, 2 * CLUSTER),
            (16 * CLUSTER, 512),
        ]
        assert await s.snapshot() == s.content
        assert await read_bytes(s.disk, 0, SIZE) == s.model

    run(main)


def test_the_map_lets_reads_by_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", discard="unmap")
        extents = s.disk.extent_map()
        assert extents is not None
        assert not extents.writable
        assert extents.discard is Treatment.ASK
        assert s.reader.extent_map() is None

    run(main)


def test_concurrent_writes_and_readers(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", discard="unmap")
        chosen = random.Random(2)

        async def change() -> None:
            offset = chosen.randrange(SIZE // 512 - 8) * 512
            kind = chosen.choice(["write", "zero", "discard"])
            if kind == "write":
                await write_bytes(s.disk, offset, chosen.randbytes(8 * 512))
            elif kind == "zero":
                await s.disk.pwrite_zeroes(offset, 8 * 512)
            else:
                await s.disk.pdiscard(offset, 8 * 512)

        async def read() -> None:
            offset = chosen.randrange(SIZE - 9000)
            expected = s.content[offset : offset + 9000]
            assert await read_bytes(s.reader, offset, 9000) == expected

        await asyncio.gather(*(change() if number % 2 else read() for number in range(200)))
        assert await s.snapshot() == s.content

    run(main)


@pytest.mark.parametrize("step", [512, CLUSTER // 2, CLUSTER, 3 * CLUSTER // 2])
def test_data_and_holes_are_saved_by_one_write_over_all_of_them(tmp_path: Path, step: int) -> None:
    """The block status of a cluster's first bytes may not hold for the rest of the cluster."""

    async def main() -> None:
        data = random.Random(3).randbytes(SIZE)
        content = bytearray(SIZE)
        for at in range(step, SIZE, 2 * step):
            content[at : at + step] = data[at : at + step][: SIZE - at]
        s = await scheme(tmp_path / "disk", content=bytes(content))
        with (tmp_path / "disk").open("rb+") as file:  # with holes
            file.truncate(0)
            for at in range(step, SIZE, 2 * step):
                file.seek(at)
                file.write(content[at : at + step])
            file.truncate(SIZE)
        await s.write(0, b"w" * SIZE)
        assert await s.snapshot() == content

    run(main)


def test_what_is_in_the_snapshot_in_part_is_not_read(tmp_path: Path) -> None:
    """A range that is only partly in the snapshot fails as a whole."""

    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        await s.reader.pdiscard(2 * CLUSTER, CLUSTER)
        for first, last in ((1, 3), (2, 3), (2, 4), (0, 5)):
            with fails_with(errno.EACCES):
                await read_bytes(s.reader, first * CLUSTER, (last - first) * CLUSTER)
        for first, last in ((0, 2), (3, 5)):
            found = await read_bytes(s.reader, first * CLUSTER, (last - first) * CLUSTER)
            assert found == s.content[first * CLUSTER : last * CLUSTER]

    run(main)


@pytest.mark.parametrize("length", [1, CLUSTER // 2, CLUSTER, CLUSTER + 1])
@pytest.mark.parametrize("kind", ["write", "zero", "discard"])
def test_all_clusters_that_a_change_touches_are_saved(
    tmp_path: Path, kind: str, length: int
) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", discard="unmap")
        start = 2 * CLUSTER - 512
        if kind == "write":
            await write_bytes(s.disk, start, b"x" * length)
        elif kind == "zero":
            await s.disk.pwrite_zeroes(start, length)
        else:
            await s.disk.pdiscard(start, length)
        assert await s.snapshot() == s.content

    run(main)


class SlowRead:
    """Holds reads of the file up until told to go on."""

    def __init__(self, graph: Graph, patch: pytest.MonkeyPatch) -> None:
        node: Any = graph.find("file")
        original = node.preadv
        self.started, self.go_on = asyncio.Event(), asyncio.Event()

        async def preadv(offset: int, iov: IoVec) -> None:
            self.started.set()
            await self.go_on.wait()
            await original(offset, iov)

        patch.setattr(node, "preadv", preadv)
        for edge in node.parents:
            edge.refresh()


def test_a_write_waits_for_who_reads_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        await s.write(0, b"a" * 512)  # cluster 0 is in the target
        slow = SlowRead(s.graph, monkeypatch)
        reading = asyncio.create_task(read_bytes(s.reader, CLUSTER, 4096))
        await slow.started.wait()
        node: Any = s.graph.find("cbw")
        node._copy.forget(1, 2)  # nothing to copy: only the reader holds the write up
        writing = asyncio.create_task(s.write(CLUSTER, b"b" * 4096))
        await s.write(512, b"c" * 512)
        assert not writing.done()
        slow.go_on.set()
        assert await reading == s.content[CLUSTER : CLUSTER + 4096]
        await writing

    run(main)


def test_a_write_waits_for_all_who_read_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        node: Any = s.graph.find("cbw")
        readings = []
        for _ in range(2):
            with monkeypatch.context() as patch:
                slow = SlowRead(s.graph, patch)
                reading = asyncio.create_task(read_bytes(s.reader, CLUSTER, 4096))
                await slow.started.wait()
                readings.append((slow, reading))
        for edge in s.graph.find("file").parents:
            edge.refresh()
        node._copy.forget(1, 2)  # nothing to copy, so the write waits only for readers
        writing = asyncio.create_task(s.write(CLUSTER, b"b" * 4096))
        for slow, reading in readings:
            await s.write(0, b"c" * 512)
            assert not writing.done()
            slow.go_on.set()
            assert await reading == s.content[CLUSTER : CLUSTER + 4096]
        await writing

    run(main)


class BrokenTarget:
    """Makes writes to the target fail."""

    def __init__(self, scheme: Scheme, patch: pytest.MonkeyPatch) -> None:
        async def pwritev(offset: int, iov: IoVec, flags: WriteFlags) -> None:
            raise OSError(errno.ENOSPC, "injected")

        patch.setattr(scheme.target, "pwritev", pwritev)
        for edge in scheme.target.parents:
            edge.refresh()


def test_break_guest_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        with monkeypatch.context() as patch:
            BrokenTarget(s, patch)
            with fails_with(errno.ENOSPC):
                await s.write(0, b"a" * 512)
            assert await s.snapshot() == s.content == await read_bytes(s.disk, 0, SIZE)
        for edge in s.target.parents:
            edge.refresh()
        await s.write(0, b"a" * 512)
        assert await s.snapshot() == s.content

    run(main)


def test_break_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", on_cbw_error="break-snapshot")
        BrokenTarget(s, monkeypatch)
        await s.write(0, b"a" * 512)
        assert await read_bytes(s.disk, 0, SIZE) == s.model
        with fails_with(errno.EACCES):
            await read_bytes(s.reader, 8 * CLUSTER, 512)
        with fails_with(errno.EACCES):
            await s.reader.block_status(0, 512)
        await s.write(CLUSTER, b"b" * 512)

    run(main)


@pytest.mark.parametrize("on_error", ["break-guest-write", "break-snapshot"])
def test_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", on_cbw_error=on_error, cbw_timeout=1)
        await s.write(4 * CLUSTER, b"x" * 512)  # in time
        slow = SlowRead(s.graph, monkeypatch)
        loop = asyncio.get_running_loop()
        original = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda _delay, *more: original(0.001, *more))
        if on_error == "break-guest-write":
            with fails_with(errno.ETIMEDOUT):
                await s.write(0, b"a" * 512)
        else:
            await s.write(0, b"a" * 512)
        node: Any = s.graph.find("cbw")
        assert node._abandoned
        # The copy that nobody waits for is waited for before the graph changes.
        section = asyncio.create_task(_drain(s))
        await asyncio.sleep(0)
        assert not section.done()
        slow.go_on.set()
        await section
        assert not node._abandoned
        if on_error == "break-guest-write":
            assert await s.snapshot() == s.content
        else:
            with fails_with(errno.EACCES):
                await s.snapshot()

    run(main)


async def _drain(s: Scheme) -> None:
    async with s.graph.drained([s.graph.find("file")]):
        pass


def test_discards_of_the_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        await s.reader.pdiscard(CLUSTER // 2, 2 * CLUSTER)
        with fails_with(errno.EACCES):
            await read_bytes(s.reader, CLUSTER, 1)
        assert await read_bytes(s.reader, 0, CLUSTER) == s.content[:CLUSTER]
        await s.write(CLUSTER, b"a" * 512)
        assert not s.target.writes
        with fails_with(errno.ENOTSUP):
            await write_bytes(s.reader, 0, b"x")

    run(main)


def test_what_is_added_to_the_disk_is_not_in_the_snapshot(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        await s.graph.resize(s.disk.node, SIZE + 4 * CLUSTER)
        await s.write(SIZE + CLUSTER, b"a" * 512)
        assert s.reader.size == SIZE
        assert await s.snapshot() == s.content
        assert not s.target.writes

    run(main)


@pytest.mark.parametrize("granularity", [CLUSTER // 4, 2 * CLUSTER])
def test_a_bitmap_says_what_is_in_the_snapshot(tmp_path: Path, granularity: int) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk", {4 * CLUSTER + 1: 1}, granularity)
        step = max(granularity, CLUSTER)
        await s.write(0, b"n" * SIZE)
        inside = slice(4 * CLUSTER, 4 * CLUSTER + step)
        assert await read_bytes(s.reader, inside.start, step) == s.content[inside]
        for start in (3 * CLUSTER, inside.stop):
            with fails_with(errno.EACCES):
                await read_bytes(s.reader, start, CLUSTER)
        assert sum(length for _, length, _ in s.target.writes) == step

    run(main)


def test_a_bitmap_that_is_no_use_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(BlockError, match=r"^Dirty bitmap 'b' not found$"):
            await scheme(tmp_path / "disk", bitmap={"node": "file", "name": "b"})
        with pytest.raises(
            BlockError,
            match=r"^Cannot create block-copy-state: Failed to merge bitmap 'chosen' to internal "
            r"copy-bitmap: Bitmap 'chosen' is currently in use",
        ):
            await scheme(tmp_path / "disk", {0: 1}, busy=True)

    run(main)


def test_the_source_is_not_shared_with_writers(tmp_path: Path) -> None:
    async def main() -> None:
        s = await scheme(tmp_path / "disk")
        with pytest.raises(BlockError, match="'write' are both required by"):
            BlockBackend("other", RW).attach(s.graph, s.graph.find("file"))
        BlockBackend("reader", Perm.CONSISTENT_READ).attach(s.graph, s.graph.find("file"))

    run(main)
