# SPDX-License-Identifier: Apache-2.0
"""A raw data file has the same content as the disk, however requests overlap."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import check, opened, qemu_img, read, run, write
from tests.block.support import fails_with
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.io.iovec import IoVec

KIB = 1 << 10
CLUSTER = 64 * KIB
SIZE = 1 << 20
FORMS = ["", ",extended_l2=on"]

HOW: dict[str, Callable[[BlockBackend, int, int], Awaitable[None]]] = {
    "zeroes": lambda disk, offset, length: disk.pwrite_zeroes(offset, length),
    "unmap": lambda disk, offset, length: disk.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP),
    "discard": lambda disk, offset, length: disk.pdiscard(offset, length),
}


def make(directory: Path, form: str) -> tuple[Path, Path]:
    """Make an image of `SIZE` bytes and its data file."""
    image, data = directory / "disk.qcow2", directory / "data"
    members = f"data_file={data},data_file_raw=on{form}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", members, image, SIZE)
    return image, data


def data_file(path: Path) -> dict[str, Any]:
    return {"driver": "file", "node-name": "data", "filename": str(path), "discard": "unmap"}


def data_node(disk: BlockBackend) -> Any:
    return disk.node.children["data-file"].node


@pytest.mark.parametrize("form", FORMS, ids=["plain", *FORMS[1:]])
def test_a_disk_that_grows_has_zeroes_whatever_its_data_file_had(tmp_path: Path, form: str) -> None:
    """The last cluster is a zero cluster, and the data file is longer than the disk."""
    image, data = tmp_path / "disk.qcow2", tmp_path / "data"
    members = f"data_file={data},data_file_raw=on{form}"
    size = SIZE - 32 * KIB
    qemu_img("create", "-q", "-f", "qcow2", "-o", members, image, size)
    with data.open("r+b") as file:
        file.seek(size)
        file.write(b"g" * CLUSTER)

    async def main() -> None:
        async with opened(image, data_file=data_file(data), discard="unmap") as (_, disk):
            start = SIZE - CLUSTER
            await disk.pwrite_zeroes(start, size - start, WriteFlags.MAY_UNMAP)
            await disk.truncate(SIZE)
            assert await read(disk, 0, SIZE) == bytes(SIZE)

    run(main())
    check(image)
    assert data.read_bytes()[:SIZE] == bytes(SIZE)  # it is not made shorter


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", HOW)
def test_zeroes_wait_for_writes_on_their_way(tmp_path: Path, how: str, form: str) -> None:
    image, data = make(tmp_path, form)
    held: list[Completion[None]] = []

    async def main() -> None:
        file = data_file(data)
        async with opened(image, data_file=file, discard="unmap") as (node, disk):
            await write(disk, 0, b"a" * 2 * CLUSTER)
            below = data_node(disk)
            original = below.pwritev

            async def pwritev(offset: int, iov: IoVec, *flags: Any) -> None:
                if iov.to_bytes().startswith(b"late"):
                    held.append(Completion())
                    await held[-1]
                await original(offset, iov, *flags)

            below.pwritev = pwritev
            node.children["data-file"].refresh()
            late = asyncio.ensure_future(write(disk, 4 * KIB, b"late" * KIB))
            await turns_until(lambda: bool(held))
            zeroing = asyncio.ensure_future(HOW[how](disk, 0, CLUSTER))
            publisher = node._image.publisher  # type: ignore[attr-defined]
            await turns_until(lambda: publisher._settled is not None or zeroing.done())
            held[0].set_result(None)
            await asyncio.gather(late, zeroing)
            shown = await read(disk, 0, SIZE)
        assert shown[CLUSTER : 2 * CLUSTER] == b"a" * CLUSTER
        assert shown == data.read_bytes()

    run(main())
    check(image)


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until a condition holds; nothing waits for time to pass."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("nothing goes on")


@pytest.mark.parametrize("how", HOW)
def test_zeroes_that_fail_leave_disk_and_file_the_same(tmp_path: Path, how: str) -> None:
    image, data = make(tmp_path, "")

    async def main() -> None:
        file = data_file(data)
        async with opened(image, data_file=file, discard="unmap") as (node, disk):
            await write(disk, 0, b"a" * 2 * CLUSTER)
            below = data_node(disk)

            async def fail(*_arguments: object) -> None:
                raise OSError(errno.EIO, "injected")

            below.pwrite_zeroes, original = fail, below.pwrite_zeroes
            with fails_with(errno.EIO):
                await HOW[how](disk, 0, 2 * CLUSTER)
            below.pwrite_zeroes = original
            # The written data is still there, and may be overwritten through the table.
            assert node._image.publisher.overwritable(0, 2 * CLUSTER) == 0  # type: ignore[attr-defined]
            await write(disk, CLUSTER, b"b" * CLUSTER)
            shown = await read(disk, 0, SIZE)
        assert shown[: 2 * CLUSTER] == b"a" * CLUSTER + b"b" * CLUSTER
        assert shown == data.read_bytes()

    run(main())


@pytest.mark.parametrize("form", FORMS)
def test_any_requests_at_once(tmp_path: Path, form: str) -> None:
    image, data = make(tmp_path, form)
    chosen = random.Random(form)

    def request(disk: BlockBackend) -> Awaitable[None]:
        offset = chosen.randrange(SIZE // 512) * 512
        length = min(chosen.randrange(1, 400) * 512, SIZE - offset)
        if chosen.random() < 0.6:
            return write(disk, offset, bytes([chosen.randrange(1, 256)]) * length)
        return HOW[chosen.choice([*HOW])](disk, offset, length)

    async def main() -> None:
        async with opened(image, data_file=data_file(data), discard="unmap") as (_, disk):
            for _ in range(20):
                await asyncio.gather(*(request(disk) for _ in range(32)))
                shown = await read(disk, 0, SIZE)
                assert shown == data.read_bytes()

    run(main())
    check(image)
