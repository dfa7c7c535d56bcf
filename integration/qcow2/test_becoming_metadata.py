# SPDX-License-Identifier: Apache-2.0
"""An L2 entry refers to a cluster with refcount 0, and the cluster becomes metadata.

The entry is published when its slice is loaded, as the cluster is not metadata yet. A later write
through the entry is refused, and the image marked as corrupt, as in QEMU.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.record import RecordingNode, opened_on
from integration.qcow2.tools import opened, qemu_img, qemu_io, read, run, write
from tests.block.support import change_bitmap, fails_with, options
from tests.exports.support import frontend
from vhostblk.block.bitmaps.node_bitmaps import RemoveBitmap
from vhostblk.block.drivers.qcow2.node import Qcow2Node
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


def _image(path: Path) -> int:
    """Make an L2 entry refer to the first free cluster, inside the file; return its offset."""
    qemu_img("create", "-q", "-f", "qcow2", path, "1G")
    qemu_img("bitmap", "--add", path, "kept")
    qemu_img("bitmap", "--add", path, "dropped")
    qemu_io(path, "write -q -P 1 0 64k")
    data = bytearray(path.read_bytes())
    counts = memoryview(data[0x20000:0x30000]).cast("H")
    host = counts.tolist().index(0) << 16
    _set_entry(data, 1 << 16, NEAR, host)
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


def _set_entry(data: bytearray, cluster_size: int, guest: int, host: int) -> None:
    index, entry = divmod(guest // cluster_size, cluster_size // 8)
    l1 = int.from_bytes(data[40:48], "big") + 8 * index
    place = (int.from_bytes(data[l1 : l1 + 8], "big") & ~(1 << 63)) + 8 * entry
    data[place : place + 8] = (1 << 63 | host).to_bytes(8, "big")


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
