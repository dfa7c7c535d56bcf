# SPDX-License-Identifier: Apache-2.0
"""Compressed clusters that vhostblk writes, by flag and through filters, as QEMU sees them."""

from __future__ import annotations

import errno
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.record import RecordingNode, never, opened_on
from integration.qcow2.tools import check, content, opened, qemu_img, qemu_io, read, run, write
from tests.block.support import RW, fails_with, options
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIZE = (5 << 19) + 1536
CLUSTER = 1 << 16


async def _compress(backend: BlockBackend, offset: int, data: bytes) -> None:
    iov = IoVec.from_buffers([bytearray(data)])
    await backend.pwritev(offset, iov, WriteFlags.WRITE_COMPRESSED)


def _checked(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", path))
    return report


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_compressed_clusters_share_host_clusters(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"compression_type={kind}", path, SIZE)
    empty = path.stat().st_size
    data = bytes(range(256)) * (SIZE // 256)

    async def main() -> None:
        async with opened(path) as (_, backend):
            await _compress(backend, 0, data)
            assert await read(backend, 0, SIZE) == data

    run(main())
    check(path)
    report = _checked(path)
    assert report["compressed-clusters"] == report["allocated-clusters"] == 41
    assert path.stat().st_size <= empty + 3 * CLUSTER
    assert content(path, tmp_path / "raw") == data


def test_references_to_a_shared_host_cluster_end_at_the_highest(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=2,cluster_size=4k", path, SIZE)

    async def main() -> bytes:
        async with opened(path) as (_, backend):
            await _compress(backend, 0, b"ab" * 32768)
            for cluster in range(0, 12, 2):  # give some of them up again
                await backend.pwrite_zeroes(cluster * 4096, 4096, WriteFlags.MAY_UNMAP)
            await backend.flush()
            await _compress(backend, 1 << 20, b"cd" * 32768)
            return await read(backend, 0, SIZE)

    seen = run(main())
    check(path)
    assert content(path, tmp_path / "raw") == seen


def test_what_cannot_be_compressed_is_refused(tmp_path: Path) -> None:
    path, external = tmp_path / "disk.qcow2", tmp_path / "external.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    form = f"data_file={tmp_path / 'data'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, external, SIZE)

    async def main() -> None:
        async with opened(path) as (_, backend):
            with fails_with(errno.EINVAL):
                await _compress(backend, 512, bytes(CLUSTER))
            with fails_with(errno.EINVAL):
                await _compress(backend, 0, bytes(512))
        async with opened(external) as (_, backend):
            with fails_with(errno.ENOTSUP):
                await _compress(backend, 0, bytes(CLUSTER))

    run(main())
    check(path)


def test_compressed_data_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    file, old = RecordingNode(path.read_bytes()), b"old" * CLUSTER

    async def main() -> None:
        async with opened_on(file) as (_, backend):
            await _compress(backend, 0, old)
            file.fails = lambda _offset, _data: errno.EIO
            with fails_with(errno.EIO):
                await _compress(backend, 0, b"new" * CLUSTER)
            file.fails = never
            assert await read(backend, 0, len(old)) == old

    run(main())
    path.write_bytes(file.data)
    check(path)
    assert content(path, tmp_path / "raw") == old.ljust(SIZE, b"\0")


@asynccontextmanager
async def _filtered(path: Path, driver: str) -> AsyncIterator[BlockBackend]:
    """Open an image with a filter on top."""
    graph = Graph()
    disk = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
    top = await graph.add(options(driver=driver, node_name="top", file=disk))
    backend = BlockBackend("test", RW)
    backend.attach(graph, top)
    yield backend
    await backend.detach()
    await graph.close()


def test_the_compress_filter_stores_what_guests_write(tmp_path: Path) -> None:
    path, size = tmp_path / "disk.qcow2", 41 * CLUSTER
    qemu_img("create", "-q", "-f", "qcow2", path, size)

    async def main() -> bytes:
        async with _filtered(path, "compress") as backend:
            await write(backend, 1000, b"a" * 300_000)
            await write(backend, 70_000, b"b" * 10)  # again, and a part of a cluster
            await write(backend, size - 512, b"c" * 512)
            return await read(backend, 0, size)

    seen = run(main())
    assert seen[70_000:70_011] == b"b" * 10 + b"a"
    check(path)
    assert _checked(path)["compressed-clusters"] == 6
    assert content(path, tmp_path / "raw") == seen


def test_the_compress_filter_takes_whole_clusters_only(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        with pytest.raises(BlockError, match="Image size is not a multiple of request alignment"):
            async with _filtered(path, "compress"):
                pass

    run(main())


def test_copy_on_read_fills_the_image(tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, SIZE)
    qemu_io(base, "write -q -P 7 0 1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)

    async def main() -> None:
        async with _filtered(path, "copy-on-read") as backend:
            assert await read(backend, 100_000, 10) == b"\7" * 10
            await write(backend, 200_000, b"x" * 10)

    run(main())
    check(path)
    mapped = json.loads(qemu_img("map", "--output=json", path))
    assert [(each["start"], each["depth"]) for each in mapped[:4]] == [
        (0, 1),
        (CLUSTER, 0),
        (2 * CLUSTER, 1),
        (3 * CLUSTER, 0),
    ]
