# SPDX-License-Identifier: Apache-2.0
"""Tables that are longer than what one refcount block counts.

With clusters of 512 bytes and refcounts of 64 bits, a block counts 64 clusters.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from integration.qcow2.commands import find_harm
from integration.qcow2.record import RecordingNode, crashes, opened_on
from integration.qcow2.tools import check, opened, qemu_img, qemu_io, read, run, write
from vhostblk.block.drivers.qcow2 import allocator

if TYPE_CHECKING:
    from pathlib import Path

#: L1 tables of 32 and of 150 clusters.
SMALL, LARGE = 64 << 20, 300 << 20
#: Deadline for what took for ever.
PATIENCE = 60
#: Lengths of tables: what is left of a block, several blocks, and blocks that count other blocks.
COUNTS = [2, 63, 64, 65, 128, 1000, 8192, 40000]


def _small_blocks(path: Path, size: int = SMALL) -> bytes:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", path, size)
    qemu_io(path, "write -q -P 1 0 20k", f"write -q -P 2 {size - 1024} 1k")
    return path.read_bytes()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("place", [1, 33, 64])
def test_a_long_run_is_allocated(tmp_path: Path, count: int, place: int) -> None:
    """It starts at any place of a refcount block; `place`: how many clusters are left in it."""
    path = tmp_path / "disk.qcow2"
    file = RecordingNode(_small_blocks(path, 1 << 20))

    async def main() -> None:
        async with opened_on(file) as (node, backend), asyncio.timeout(PATIENCE):
            image = node._image
            await image.allocator.allocate(-image.allocator.high_water % 64 + 64 - place)
            taken = await image.allocator.allocate_together(count)
            assert taken.length == count
            assert [await image.refcounts.get(taken.first + at) for at in (0, count - 1)] == [1, 1]
            await image.allocator.free(taken)
            await write(backend, 100 << 10, b"w" * 4096)

    run(main())
    path.write_bytes(file.data)
    leaked = qemu_img("check", path, check=False)
    assert "ERROR" not in leaked
    assert leaked.count("Leaked cluster") < 3 * 64 + 1  # what the test has allocated before the run


def test_free_clusters_that_are_too_few_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    file = RecordingNode(_small_blocks(path, 1 << 20))

    async def main() -> None:
        async with opened_on(file) as (node, _), asyncio.timeout(PATIENCE):
            image = node._image
            taken = await image.allocator.allocate_together(300)
            end = taken.first + taken.length
            for first, count in ((taken.first, 130), (taken.first + 131, 160)):
                await image.allocator.free(taken._replace(first=first, length=count))
            again = await image.allocator.allocate_together(161)
            assert again.first >= end
            assert (await image.allocator.allocate_together(130)).first == taken.first

    run(main())


def test_growing_survives_a_crash_and_errors_at_any_point(tmp_path: Path) -> None:
    """The new L1 table and the blocks that count it appear in a safe order."""
    before = _small_blocks(tmp_path / "disk.qcow2")

    async def grow(fails_at: int) -> tuple[RecordingNode, int]:
        file = RecordingNode(before)
        with mock.patch.object(allocator, "GROWTH", 16 << 10):
            async with opened_on(file) as (node, backend), asyncio.timeout(PATIENCE):
                image, start = node._image, file.requests
                # One block is counted in the present one, the next in that block.
                image.allocator.hint = image.allocator.high_water | 63
                file.fails_at = lambda n: errno.EIO if n - start == fails_at else 0
                with suppress(OSError):
                    await backend.truncate(LARGE)
                requests = file.requests - start
                assert node.size == LARGE or fails_at >= 0
                await write(backend, 50 << 20, b"w" * 1024)
        return file, requests

    async def look(state: bytes) -> int:
        async with opened_on(RecordingNode(state), read_only=True) as (node, backend):
            assert not await find_harm(node._image)
            assert await read(backend, SMALL - 1024, 1024) == b"\2" * 1024
            return node.size

    file, requests = run(grow(-1))
    assert requests > 14
    seen = {run(look(state)) for state in crashes(before, file.log)}
    assert seen == {SMALL, LARGE}
    for number in range(requests):
        file, _ = run(grow(number))
        run(look(bytes(file.data)))


def test_a_disk_grows_and_is_snapshotted(tmp_path: Path) -> None:
    """With clusters of 512 bytes, 1 GiB has an L1 table of 512 clusters, and a block counts 256."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, 1 << 20)

    async def main() -> None:
        async with opened(path) as (node, backend), asyncio.timeout(PATIENCE):
            await backend.truncate(1 << 30)
            await write(backend, (1 << 30) - 512, b"w" * 512)
            await node.create_snapshot("s")  # type: ignore[attr-defined]
            await write(backend, (1 << 30) - 512, b"x" * 512)

    run(main())
    check(path)
    qemu_img("snapshot", "-a", "s", path)
    qemu_io(path, f"read -q -P {ord('w')} {(1 << 30) - 512} 512")


def test_a_snapshot_of_a_large_disk(tmp_path: Path) -> None:
    """The L1 table of 4 TiB has 4096 clusters of 4 KiB, and a block counts 2048."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, 4 << 40)

    async def main() -> None:
        async with opened(path) as (node, backend), asyncio.timeout(PATIENCE):
            await write(backend, 3 << 40, b"w" * 512)
            await node.create_snapshot("s")  # type: ignore[attr-defined]

    run(main())
    check(path)
