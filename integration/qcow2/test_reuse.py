# SPDX-License-Identifier: Apache-2.0
"""Space that is freed and reused while the release is still pending."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.test_bursts import burst
from integration.qcow2.tools import check, content, opened, qemu_img, read, run, write
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend

CLUSTER = 64 << 10
SIZE = 4 << 20


async def write_compressed(backend: BlockBackend, offset: int, data: bytes) -> None:
    iov = IoVec.from_buffers([bytearray(data)])
    await backend.pwritev(offset, iov, WriteFlags.WRITE_COMPRESSED)


def test_room_behind_compressed_data_is_not_used_once_its_cluster_has_another_use(
    tmp_path: Path,
) -> None:
    path, rng = tmp_path / "disk.qcow2", random.Random("packed")
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    # The second one's data begins in one host cluster, and ends in the next, which has room left.
    packed = [rng.randbytes(40_000).ljust(CLUSTER, b"\0") for _ in range(3)]
    model = bytearray(SIZE)

    async def main() -> None:
        async with opened(path) as (_, backend):
            for number in range(2):
                await write_compressed(backend, number * CLUSTER, packed[number])
            await backend.pwrite_zeroes(0, 2 * CLUSTER, WriteFlags.MAY_UNMAP)
            await backend.flush()
            for number in range(8, 12):
                data = rng.randbytes(CLUSTER)
                await write(backend, number * CLUSTER, data)
                model[number * CLUSTER : (number + 1) * CLUSTER] = data
            await write_compressed(backend, 2 * CLUSTER, packed[2])
            model[2 * CLUSTER : 3 * CLUSTER] = packed[2]
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


def test_a_compressed_cluster_in_the_place_of_another_one_is_read_from_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            entries: set[int] = set()
            for byte in (b"a", b"b"):
                await write_compressed(backend, 0, byte * CLUSTER)
                entries.update(node._image.tables.slices[0].words[:1].tolist())
                assert await read(backend, 0, CLUSTER) == byte * CLUSTER
                await backend.pwrite_zeroes(0, CLUSTER, WriteFlags.MAY_UNMAP)
                await backend.flush()
            assert len(entries) == 1

    run(main())
    check(path)


def test_clusters_that_were_given_up_are_used_before_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        async with opened(path, discard="unmap") as (node, backend):

            async def hosts(first: int, count: int) -> set[int | None]:
                extents = [
                    await node.block_status(number * CLUSTER, CLUSTER)
                    for number in range(first, first + count)
                ]
                assert all(extent.status & BlockStatus.OFFSET_VALID for extent in extents)
                return {extent.offset for extent in extents}

            for number in range(8):
                await write(backend, 2 * number * CLUSTER, b"a" * CLUSTER)
            former = await hosts(4, 1) | await hosts(10, 1)
            for number in (4, 10):
                await backend.pdiscard(number * CLUSTER, CLUSTER)
            await backend.flush()
            for number in (30, 40):  # no stream
                await write(backend, number * CLUSTER, b"b" * CLUSTER)
            assert await hosts(30, 1) | await hosts(40, 1) == former

    run(main())
    check(path)


def test_a_run_past_the_end_of_a_refcount_block_has_no_cluster_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", path, SIZE)

    async def main() -> None:
        async with opened(path) as (node, backend):
            assert isinstance(node, Qcow2Node)
            await write(backend, 0, b"a" * 512 * 200)
            image, border = node._image, 1 << node._image.geometry.refblock_bits
            async with image.lock:
                assert await image.refcounts.get(border) == 1
                for cluster in (border - 2, border - 1):
                    assert (await image.refcounts.change(cluster, 1, -1)).tolist() == [cluster]
                image.allocator.hint = border - 2
                taken = await image.allocator.allocate_together(3)
                assert taken.first > border
                taken = await image.allocator.allocate_together(2)
                assert taken.first == border - 2

    run(main())


@pytest.mark.parametrize("give_up", ["discard", "unmap"])
@pytest.mark.parametrize("form", ["cluster_size=64k", "extended_l2=on,cluster_size=64k"])
def test_an_external_data_file_forgets_nothing_that_was_written_again(
    tmp_path: Path, give_up: str, form: str
) -> None:
    path, rng = tmp_path / "disk.qcow2", random.Random(f"{give_up} {form}")
    data_file = f"data_file={tmp_path / 'data'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"{form},{data_file}", path, SIZE)
    data = {"driver": "file", "filename": str(tmp_path / "data"), "discard": "unmap"}
    model = bytearray(SIZE)

    async def put(backend: BlockBackend, offset: int, length: int) -> None:
        written = rng.randbytes(length)
        await write(backend, offset, written)
        model[offset : offset + length] = written

    async def forget(backend: BlockBackend, first: int, count: int) -> None:
        offset, length = first * CLUSTER, count * CLUSTER
        if give_up == "discard":
            await backend.pdiscard(offset, length)
        else:
            await backend.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP)
        model[offset : offset + length] = bytes(length)

    async def main() -> None:
        async with opened(path, discard="unmap", data_file=data) as (node, backend):
            await put(backend, 0, 16 * CLUSTER)
            await backend.flush()
            await forget(backend, 2, 8)
            await put(backend, 3 * CLUSTER, CLUSTER)
            await put(backend, 5 * CLUSTER + 4096, 2 * CLUSTER)
            await forget(backend, 6, 1)  # once more
            await backend.flush()
            assert await read(backend, 0, SIZE) == model
            # Clusters that were not written again are discarded in the data file.
            below = node.children["data-file"]
            for cluster in (2, 4, 6, 8, 9):
                extent = await below.block_status(cluster * CLUSTER, CLUSTER)
                assert (extent.status & BlockStatus.ZERO, extent.length) == (2, CLUSTER), cluster

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


@pytest.mark.parametrize("together", [False, True])
def test_no_old_data_shows_where_a_freed_cluster_lies_before_unused_ones(
    tmp_path: Path, together: bool
) -> None:
    """The file keeps the content of freed clusters; only clusters behind it are zeroes."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    model = bytearray(SIZE)

    async def put(backend: BlockBackend, offset: int, data: bytes) -> None:
        await write(backend, offset, data)
        model[offset : offset + len(data)] = data

    async def main() -> None:
        file = {"driver": "file", "filename": str(path), "discard": "ignore"}
        async with opened(path, file=file, discard="unmap") as (_, backend):
            await put(backend, 0, b"o" * (3 * CLUSTER))
            await backend.flush()
            freed = CLUSTER if together else 2 * CLUSTER
            await backend.pdiscard(freed, CLUSTER)
            model[freed : freed + CLUSTER] = bytes(CLUSTER)
            await backend.flush()  # a cluster in the middle, or the last one in use, is free now
            if together:
                pieces = [(at * CLUSTER + 4096, b"n" * 4096) for at in (20, 24, 28)]
                assert not any(await burst(backend, model, pieces))
            else:
                await put(backend, 21 * CLUSTER - 4096, b"n" * 8192)
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model
