# SPDX-License-Identifier: Apache-2.0
"""`qemu-img` and `qemu-io`, and images opened in-process."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tests.block.support import RW, options
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(main)


def qemu_img(*arguments: object, check: bool = True) -> str:
    """Run qemu-img; return what it says."""
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"qemu-img {arguments}: {done.stdout}{done.stderr}"
    return done.stdout + ("" if check else done.stderr)


def qemu_img_status(*arguments: object) -> tuple[int, str]:
    """Run qemu-img; return its exit status and what it says."""
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def qemu_io(path: Path | str, *commands: str, options: str = "") -> str:
    """Run qemu-io's commands on an image."""
    status, said = qemu_io_status(path, *commands, options=options)
    assert status == 0, f"qemu-io {commands}: {said}"
    return said


def qemu_io_status(path: Path | str, *commands: str, options: str = "") -> tuple[int, str]:
    """Run qemu-io's commands on an image; return its exit status and what it says."""
    words = ["qemu-io", *(["--image-opts", options] if options else ["-f", "qcow2", str(path)])]
    for command in commands:
        words += ["-c", command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def check(path: Path | str) -> None:
    """Have qemu-img find nothing wrong with an image."""
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def content(path: Path | str, raw: Path) -> bytes:
    """Return what QEMU reads from an image."""
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()


@asynccontextmanager
async def opened(
    path: Path | str, perm: Perm = RW | Perm.RESIZE, **members: Any
) -> AsyncIterator[tuple[BlockNode, BlockBackend]]:
    """Open an image in a graph of its own."""
    graph = Graph()
    file = members.pop("file", {"driver": "file", "filename": str(path)})
    if not perm & Perm.WRITE:
        members["read_only"] = True
    node = await graph.add(options(driver="qcow2", node_name="disk", file=file, **members))
    backend = BlockBackend("test", perm)
    try:
        backend.attach(graph, node)
        yield node, backend
    finally:
        await backend.detach()
        await graph.close()


async def read(backend: BlockBackend, offset: int, length: int) -> bytes:
    """Read bytes."""
    iov = IoVec.allocate(length)
    iov.fill(0xEE)
    await backend.preadv(offset, iov)
    return iov.to_bytes()


async def write(backend: BlockBackend, offset: int, data: bytes) -> None:
    """Write bytes."""
    await backend.pwritev(offset, IoVec.from_buffers([bytearray(data)]))


#: What a sector is: (data, zeroes, where in the file).
Sector = tuple[bool, bool, int | None]


async def sectors(node: BlockNode, size: int) -> list[Sector]:
    """Return what a node says of each sector of an image."""
    found: list[Sector] = []
    while (offset := 512 * len(found)) < size:
        extent = await node.block_status(offset, size - offset)
        data = bool(extent.status & BlockStatus.DATA)
        zero = bool(extent.status & BlockStatus.ZERO)
        valid = extent.status & BlockStatus.OFFSET_VALID
        found += [
            (data, zero, extent.offset + inside if valid else None)
            for inside in range(0, extent.length, 512)
        ]
    return found


def agree(ours: list[Sector], theirs: list[Sector]) -> bool:
    """Compare; of data QEMU also says where the file has a hole."""
    return len(ours) == len(theirs) and all(
        mine == other or (mine[0] and other == (True, True, mine[2]))
        for mine, other in zip(ours, theirs, strict=True)
    )


def sectors_by_qemu(path: Path | str) -> list[Sector]:
    """Return the same of `qemu-img map`."""
    return [
        (each["data"], each["zero"], each["offset"] + inside if "offset" in each else None)
        for each in json.loads(qemu_img("map", "--output=json", "-f", "qcow2", path))
        for inside in range(0, each["length"], 512)
    ]
