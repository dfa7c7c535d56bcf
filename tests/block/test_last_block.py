# SPDX-License-Identifier: Apache-2.0
"""Disks whose size is not a multiple of their block size: no write makes them longer."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import (
    RW,
    MemoryNode,
    backend_on,
    fails_with,
    options,
    read_bytes,
    run,
    write_bytes,
)
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

BLOCK = 4096
#: Two blocks and a half.
SIZE = 10240
REFUSED = (
    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request "
    "alignment"
)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    command = ["losetup", "--find", "--show", "--sector-size", str(BLOCK), str(image)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"losetup: {error}")
    if made.returncode:
        pytest.skip(f"losetup: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_device_whose_last_block_is_cut_off_has_no_writers(loop_device: str) -> None:
    async def main() -> None:
        graph = Graph()
        device = {"driver": "host_device", "filename": loop_device, "cache": {"direct": True}}
        node = await graph.add(options(driver="raw", node_name="disk", file=device))
        with pytest.raises(BlockError, match=f"^{REFUSED}$"):
            BlockBackend("writer", RW).attach(graph, node)
        reader = BlockBackend("reader", Perm.CONSISTENT_READ)
        reader.attach(graph, node)
        assert await read_bytes(reader, SIZE // BLOCK * BLOCK - 512, 512) == bytes(512)
        await reader.detach()
        await graph.close()

    run(main)


def _half_block() -> dict[str, Any]:
    memory = {"driver": "null-co", "size": SIZE, "read-zeroes": True}
    return {"driver": "blkdebug", "align": BLOCK, "image": memory}


@pytest.mark.parametrize(
    "above",
    [
        {"driver": "raw"},
        {"driver": "raw", "size": BLOCK},
        {"driver": "raw", "offset": 512},
        {"driver": "preallocate"},
    ],
    ids=lambda above: "-".join(str(value) for value in above.values()),
)
def test_what_lies_above_has_no_writers_either(above: dict[str, Any]) -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(options(**above, node_name="disk", file=_half_block()))
        with pytest.raises(BlockError, match=f"^{REFUSED}$"):
            BlockBackend("writer", RW).attach(graph, node)
        growing = BlockBackend("growing", RW | Perm.RESIZE)
        growing.attach(graph, node)  # as formats do
        await growing.detach()
        await graph.close()

    run(main)


def _memory(size: int) -> MemoryNode:
    node = MemoryNode(size, BlockLimits(request_alignment=BLOCK))
    node.data[:] = b"\x55" * size
    return node


@pytest.mark.parametrize(
    "write",
    [
        lambda user: write_bytes(user, SIZE - 512, bytes(512)),
        lambda user: write_bytes(user, 512, bytes(SIZE - 512)),
        lambda user: user.pwrite_zeroes(SIZE - 512, 512),
        lambda user: user.pwrite_zeroes(0, SIZE, WriteFlags.MAY_UNMAP),
    ],
    ids=["block", "many blocks", "zeroes", "all zeroes"],
)
def test_disk_cut_off_under_its_writer_stays_as_long_as_it_is(
    write: Callable[[BlockBackend], Awaitable[None]],
) -> None:
    async def main() -> None:
        node = _memory(3 * BLOCK)
        _, user = backend_on(node)
        del node.data[SIZE:]
        with fails_with(errno.EPERM):
            await write(user)
        assert node.data == b"\x55" * SIZE
        await user.pdiscard(SIZE - 512, 512)
        assert await read_bytes(user, SIZE - 512, 512) == b"\x55" * 512
        await write_bytes(user, BLOCK - 512, b"\x01" * (BLOCK + 512))
        assert node.data[BLOCK - 512 :] == b"\x01" * (BLOCK + 512) + b"\x55" * (BLOCK // 2)
        await user.detach()

    run(main)


def test_who_may_resize_fills_up_the_last_block() -> None:
    async def main() -> None:
        node = _memory(SIZE)
        _, user = backend_on(node, RW | Perm.RESIZE)
        await write_bytes(user, SIZE - 512, b"\x01" * 512)
        assert len(node.data) == 3 * BLOCK
        assert node.data[SIZE - 512 :] == b"\x01" * 512 + bytes(BLOCK // 2)
        await user.detach()

    run(main)


def test_users_may_leave_a_disk_that_was_cut_off() -> None:
    async def main() -> None:
        node = _memory(3 * BLOCK)
        graph, writer = backend_on(node)
        other = BlockBackend("other", RW)
        other.attach(graph, node)
        del node.data[SIZE:]
        await other.detach()
        await writer.detach()
        with pytest.raises(BlockError, match=f"^{REFUSED}$"):
            BlockBackend("writer", RW).attach(graph, node)

    run(main)
