# SPDX-License-Identifier: Apache-2.0
"""An L2 entry refers to a cluster with refcount 0, and the cluster becomes metadata.

The entry is published when its slice is loaded, as the cluster is not metadata yet. A later write
through the entry is refused, and the image marked as corrupt, as in QEMU.
"""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.tools import opened, qemu_img, qemu_io, read, run, write
from tests.block.support import change_bitmap, fails_with, options
from tests.exports.support import frontend
from vhostblk.block.bitmaps.node_bitmaps import RemoveBitmap
from vhostblk.block.drivers.qcow2 import publish, snapshot_changes
from vhostblk.block.drivers.qcow2.layout import (
    ALL_SUBCLUSTERS,
    COPIED,
    OFFSET_MASK,
    OVERWRITE,
    SUBCLUSTERS,
    ZERO,
)
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.drivers.qcow2.referred import Referred
from vhostblk.block.graph.graph import Graph
from vhostblk.schema.common import PreallocMode
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.node import BlockNode

#: Guest clusters: one that the first L2 table maps, and one of the second, of images with clusters
#: of 512 bytes.
NEAR, FAR = 64 << 10, 64 << 9
#: The number of such clusters that a refcount block covers, and that a one-cluster table covers.
BLOCK, TABLE = 256, 64 * 256


def _image(
    path: Path, *, extended: bool = False, zero: bool = False, snapshots: tuple[str, ...] = ()
) -> int:
    """Have an L2 entry refer to the first free cluster, inside the file; return where.

    `zero`: it reads as zeroes nevertheless.
    """
    setting = f"extended_l2={'on' if extended else 'off'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", setting, path, "1G")
    qemu_img("bitmap", "--add", path, "kept")
    qemu_img("bitmap", "--add", path, "dropped")
    for name in snapshots:
        qemu_img("snapshot", "-c", name, path)
    qemu_io(path, "write -q -P 1 0 64k")
    data = bytearray(path.read_bytes())
    counts = memoryview(data[0x20000:0x30000]).cast("H")
    host = counts.tolist().index(0) << 16
    word = host | ZERO if zero and not extended else host
    if extended:
        _set_entry(data, 1 << 16, NEAR, word, ALL_SUBCLUSTERS << SUBCLUSTERS * zero)
    else:
        _set_entry(data, 1 << 16, NEAR, word)
    data += bytes(8 << 16)
    path.write_bytes(data)
    return host


def _small_clusters(path: Path, host: int) -> None:
    """Make an L2 entry refer to a cluster that is still behind the file's end."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "16M")
    qemu_io(path, "write -q -P 1 0 512", f"write -q -P 1 {FAR} 512")
    data = bytearray(path.read_bytes())
    assert len(data) < host
    _set_entry(data, 512, FAR, host)
    path.write_bytes(data)


def _set_entry(data: bytearray, cluster_size: int, guest: int, word: int, *bitmap: int) -> None:
    words = [COPIED | word, *bitmap]
    index, entry = divmod(guest // cluster_size, cluster_size // (8 * len(words)))
    l1 = int.from_bytes(data[40:48], "big") + 8 * index
    table = int.from_bytes(data[l1 : l1 + 8], "big") & OFFSET_MASK
    struct.pack_into(f">{len(words)}Q", data, table + 8 * len(words) * entry, *words)


def _overwritable(node: BlockNode, guest: int) -> int:
    assert isinstance(node, Qcow2Node)
    return node._image.publisher.overwritable(guest, 512)


async def _new_table(_node: Qcow2Node, backend: BlockBackend) -> None:
    await write(backend, 600 << 20, b"x" * 4096)


async def _move_l1(node: Qcow2Node, _backend: BlockBackend) -> None:
    """Make growing fail after the L1 table has moved; then no entry is published again."""

    async def give_up() -> None:
        raise OSError(errno.ENOSPC, "given up")

    with fails_with(errno.ENOSPC):
        await node.grow(2 << 30, PreallocMode.METADATA, give_up)


async def _new_directory(node: Qcow2Node, _backend: BlockBackend) -> None:
    await change_bitmap(RemoveBitmap, node._graph, "disk", "dropped")


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("active L2 table", _new_table),
        ("active L1 table", _move_l1),
        ("bitmap directory", _new_directory),
    ],
)
def test_a_write_to_what_has_become_metadata_is_refused(
    tmp_path: Path,
    caplog: Any,
    what: str,
    change: Callable[[Qcow2Node, BlockBackend], Awaitable[None]],
) -> None:
    path = tmp_path / "disk.qcow2"
    host = _image(path)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await read(backend, NEAR, 4)
            assert _overwritable(node, NEAR) == host
            assert isinstance(node, Qcow2Node)
            await change(node, backend)
            with fails_with(errno.EIO):
                await write(backend, NEAR, b"y" * 512)

    run(main())
    _check_refused(path, caplog.text, what)


@pytest.mark.parametrize("extended", [False, True])
def test_a_place_that_was_written_once_is_noted(
    tmp_path: Path, caplog: Any, extended: bool
) -> None:
    """The entry allows no writes when it is loaded, as it reads as zeroes."""
    path = tmp_path / "disk.qcow2"
    host = _image(path, extended=extended, zero=True)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await read(backend, NEAR, 4)
            assert _overwritable(node, NEAR) < 0
            await write(backend, NEAR, b"a" * 512)
            assert _overwritable(node, NEAR) == host
            assert isinstance(node, Qcow2Node)
            await _new_table(node, backend)
            with fails_with(errno.EIO):
                await write(backend, NEAR, b"y" * 512)

    run(main())
    _check_refused(path, caplog.text, "active L2 table")


def test_a_slice_loaded_before_writing_begins_is_noted(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "disk.qcow2"
    host = _image(path)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            image = node._image
            image.defer_writes()  # as when the node has come to have another file
            await read(backend, NEAR, 4)
            image.admit_writes()
            publisher = image.publisher
            publisher.update(image.tables.slices[0], 0, publisher.slice_clusters)
            assert _overwritable(node, NEAR) == host
            await _new_table(node, backend)
            with fails_with(errno.EIO):
                await write(backend, NEAR, b"y" * 512)

    run(main())
    _check_refused(path, caplog.text, "active L2 table")


def test_tables_in_discarded_clusters_cost_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16G")
    qemu_io(path, "write -q -P 1 0 1M")
    searched: list[bool] = []
    may_refer = Referred.may_refer

    def spy(self: Referred, first: int, count: int) -> bool:
        searched.append(may_refer(self, first, count))
        return searched[-1]

    monkeypatch.setattr(Referred, "may_refer", spy)

    async def main() -> None:
        async with opened(path, discard="unmap") as (_, backend):
            await read(backend, 0, 4)
            for number in range(1, 8):
                await backend.pdiscard(number << 16, 1 << 16)
                await backend.flush()
                await write(backend, number << 30, b"x" * (1 << 16))

    run(main())
    assert searched == [False] * 7


def test_a_write_to_a_new_snapshot_table_is_refused(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slices stay loaded, as what follows the deletion of a snapshot fails."""
    path = tmp_path / "disk.qcow2"
    host = _image(path, snapshots=("kept", "gone"))

    async def fail(image: Any) -> None:
        await image.commit.write_all()
        raise OSError(errno.EIO, "no reading")

    monkeypatch.setattr(snapshot_changes, "_tidy_up", fail)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await read(backend, NEAR, 4)
            assert _overwritable(node, NEAR) == host
            assert isinstance(node, Qcow2Node)
            await node.delete_snapshot(name="gone")
            assert node._image.header.snapshots_offset == host
            with fails_with(errno.EIO):
                await write(backend, NEAR, b"y" * 512)

    run(main())
    _check_refused(path, caplog.text, "snapshot table")


def test_others_have_turns_while_entries_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.qcow2"
    _image(path)
    monkeypatch.setattr(publish, "_TURN", 1)
    waiting: list[None] = []
    searched, find = 0, Referred.find

    def spy(*arguments: Any) -> Any:
        nonlocal searched
        searched += 1
        assert not waiting
        waiting.append(None)
        asyncio.get_running_loop().call_soon(waiting.clear)
        return find(*arguments)

    monkeypatch.setattr(Referred, "find", spy)

    async def main() -> None:
        async with opened(path, l2_cache_entry_size=4096) as (node, backend):
            for number in range(4):
                await read(backend, number * (32 << 20), 4)
            assert isinstance(node, Qcow2Node)
            assert len(node._image.tables.slices) == 4
            await _new_table(node, backend)

    run(main())
    assert searched == 4


@pytest.mark.parametrize("extended", [False, True])
def test_entries_are_counted_as_they_come_and_go(tmp_path: Path, extended: bool) -> None:
    path, size = tmp_path / "disk.qcow2", 32 << 20
    base = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, str(size))
    qemu_io(base, "write -q -P 1 1M 8M")
    cluster, setting = (16384, "on") if extended else (4096, "off")
    chosen = f"cluster_size={cluster},extended_l2={setting},backing_file={base},backing_fmt=qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", chosen, path, str(size))
    draw = random.Random(7)

    async def main() -> None:
        async with opened(
            path, discard="unmap", l2_cache_entry_size=512, l2_cache_size=4 * cluster
        ) as (node, backend):
            for number in range(400):
                unit = draw.choice([512, cluster])
                offset = draw.randrange(size // unit - 8) * unit
                length = draw.randint(1, 8) * unit
                step = draw.randrange(6)
                if step < 3:
                    await write(backend, offset, b"w" * length)
                elif step == 3:
                    await backend.pwrite_zeroes(offset, length)
                elif step == 4:
                    await backend.pdiscard(offset, length)
                else:
                    await read(backend, offset, 512)
                if number % 20 == 0:
                    await backend.flush()
                    _check_counts(node)
            assert isinstance(node, Qcow2Node)
            counts = node._image.publisher._referred._counts
            assert counts.any()
            node._image.refuse_writes()
            assert not counts.any()

    run(main())


def _check_counts(node: BlockNode) -> None:
    assert isinstance(node, Qcow2Node)
    image = node._image
    entries, counts = image.publisher.entries, image.publisher._referred._counts
    entries = entries[(entries & np.uint64(OVERWRITE)) != 0]
    clusters = (
        (entries & np.uint64(OFFSET_MASK)) >> np.uint64(image.geometry.cluster_bits)
    ).astype(np.int64)
    assert (np.bincount(clusters % len(counts), minlength=len(counts)) == counts).all()


@pytest.mark.parametrize(
    ("what", "cluster"), [("refcount block", BLOCK), ("refcount table", TABLE)]
)
def test_a_write_to_what_has_become_refcounts_is_refused(
    tmp_path: Path, caplog: Any, what: str, cluster: int
) -> None:
    path, host = tmp_path / "disk.qcow2", cluster << 9
    _small_clusters(path, host)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await write(backend, 512, b"x" * 512)  # the file grows in advance
            await read(backend, FAR, 4)
            assert isinstance(node, Qcow2Node)
            assert _overwritable(node, FAR) < 0  # it is past all that is in use
            step = 64 << 10
            for offset in range(1 << 20, 16 << 20, step):
                await write(backend, offset, b"x" * step)
                if node._image.allocator.high_water > cluster + BLOCK:
                    break
            with fails_with(errno.EIO):
                await write(backend, FAR, b"y" * 512)

    run(main())
    _check_refused(path, caplog.text, what)


def _check_refused(path: Path, log: str, what: str) -> None:
    assert f"Preventing invalid write on metadata (overlaps with {what})" in log
    after = path.read_bytes()
    assert after[79] & 2  # marked as corrupt
    assert b"y" * 512 not in after


def test_a_write_that_waits_for_the_new_table_is_refused(tmp_path: Path, caplog: Any) -> None:
    """Its slice is loaded with the burst that allocates its cluster for a refcount block."""
    path = tmp_path / "disk.qcow2"
    _small_clusters(path, BLOCK << 9)

    async def main() -> None:
        async with opened(path) as (node, backend):
            await write(backend, 512, b"x" * 512)  # the file grows in advance
            assert _overwritable(node, FAR) < 0
            new = [(1 << 20) + 512 * number for number in range(240)]
            burst = [write(backend, at, b"y" * 512) for at in [FAR, *new]]
            failures = await asyncio.gather(*burst, return_exceptions=True)
            assert isinstance(failures[0], OSError)

    run(main())
    assert "overlaps with refcount block" in caplog.text
    assert path.read_bytes()[BLOCK << 9 :][:512] != b"y" * 512


def test_a_table_comes_after_what_is_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    host = _image(path)
    file = RecordingNode(path.read_bytes())

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            await read(backend, NEAR, 4)
            file.holds = lambda _, data: data.startswith(b"late")
            held = asyncio.ensure_future(write(backend, NEAR, b"late" * 128))
            other = asyncio.ensure_future(write(backend, 600 << 20, b"x" * 4096))
            publisher = node._image.publisher
            for _ in range(10_000):
                if publisher._settled is not None or other.done():
                    break
                await asyncio.sleep(0)
            file.held.pop().set_result(None)
            await asyncio.gather(held, other)
            assert int(node._image.tables.l1[1]) & ~(1 << 63) == host
            await backend.flush()
            assert b"late" not in file.data[host : host + 512]

    run(main())


def test_the_engine_asks_before_it_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOSTBLK_LANE", "express")
    path = tmp_path / "disk.qcow2"
    host = _image(path)

    async def main() -> None:
        graph = Graph()
        file = {"driver": "file", "filename": str(path)}
        node = await graph.add(options(driver="qcow2", node_name="disk", file=file))
        async with frontend(node) as front:
            await front.connect()
            await front.start()
            assert await front.done(front.request(RequestType.IN, 128, want=512)) == 0
            far = front.request(RequestType.OUT, 600 << 11, send=b"x" * 4096)
            assert await front.done(far) == 0
            late = front.request(RequestType.OUT, 128, send=b"y" * 4096)
            assert await front.done(late) == Status.IOERR
        await front.block_backend.detach()
        await graph.close()

    run(main())
    assert path.read_bytes()[host : host + 4096] != b"y" * 4096
