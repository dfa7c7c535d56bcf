# SPDX-License-Identifier: Apache-2.0
"""A file in memory that records what is written to it, and the states that a crash may leave."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from tests.block.support import RW, options
from vhostblk.block.backend import BlockBackend
from vhostblk.block.drivers.qcow2.node import Qcow2Node
from vhostblk.block.graph import Graph
from vhostblk.block.inherit import resolve
from vhostblk.block.node import BlockNode, BlockStatus, Extent, WriteFlags
from vhostblk.schema.drivers.file import BlockdevOptionsFile

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

    from vhostblk.block.iovec import IoVec

SECTOR = 512

#: A change: offset and data; a truncation has no data, a flush nothing.
Change = tuple[int, bytes | None] | None


class RecordingNode(BlockNode):
    """A file whose writes are all in `log`, in order; each request suspends.

    `fails` says with which errno a write of these bytes to this place fails, half done; 0: it
    succeeds.
    """

    driver = "file"

    def __init__(self, data: bytes) -> None:
        options = BlockdevOptionsFile(node_name="record", filename="record")
        super().__init__("record", resolve(options))
        self.data = bytearray(data)
        self.log: list[Change] = []
        self.fails: Callable[[int, bytes], int] = never

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return -(-len(self.data) // SECTOR) * SECTOR

    @property
    def grows_with_zeroes(self) -> bool:
        return True

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await asyncio.sleep(0)
        iov.copy_from(bytes(self.data[offset : offset + iov.nbytes]).ljust(iov.nbytes, b"\0"))

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        data = iov.to_bytes()
        await asyncio.sleep(0)
        self._write(offset, data)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await asyncio.sleep(0)
        self._write(offset, bytes(length))

    async def pdiscard(self, offset: int, length: int) -> None:
        await asyncio.sleep(0)
        # What nobody may rely on any more: so that whoever does is found out.
        self._change((offset, b"\xdd" * length))

    async def truncate(self, size: int) -> None:
        await asyncio.sleep(0)
        self._change((size, None))

    async def flush(self) -> None:
        # Only what is complete when the flush begins is sure to be there.
        position = len(self.log)
        await asyncio.sleep(0)
        self.log.insert(position, None)

    async def block_status(self, offset: int, length: int) -> Extent:
        status = BlockStatus.DATA | BlockStatus.OFFSET_VALID | BlockStatus.ALLOCATED
        return Extent(length, status, offset, self)

    def _write(self, offset: int, data: bytes) -> None:
        code = self.fails(offset, data)
        if not code:
            self._change((offset, data))
            return
        self._change((offset, data[: len(data) // 2]))
        raise OSError(code, os.strerror(code))

    def _change(self, change: tuple[int, bytes | None]) -> None:
        self.log.append(change)
        apply_change(self.data, change)


def never(_offset: int, _data: bytes) -> int:
    """Have no write fail."""
    return 0


@asynccontextmanager
async def opened_on(
    file: RecordingNode, **members: Any
) -> AsyncIterator[tuple[Qcow2Node, BlockBackend]]:
    """Open the image in a recorded file, in a graph of its own."""
    graph = Graph()
    graph._nodes["record"] = file  # not by a driver's name: it is no driver
    node = await graph.add(options(driver="qcow2", node_name="disk", file="record", **members))
    assert isinstance(node, Qcow2Node)
    backend = BlockBackend("test", RW)
    backend.attach(graph, node)
    yield node, backend
    await backend.detach()
    await graph.close()


def apply_change(data: bytearray, change: tuple[int, bytes | None]) -> None:
    """Do to a file what was recorded."""
    offset, written = change
    if written is None:
        del data[offset:]
        data.extend(bytes(offset - len(data)))
        return
    if offset + len(written) > len(data):
        data.extend(bytes(offset + len(written) - len(data)))
    data[offset : offset + len(written)] = written


def crash(before: bytes, log: list[Change], rng: random.Random) -> bytes:
    """Return a file as a crash at the end of `log` may leave it.

    What was flushed is there. Of the rest each write may be there or not, or some of its sectors;
    likewise each change of the file's length.
    """
    data = bytearray(before)
    last = max((index for index, change in enumerate(log) if change is None), default=-1)
    for index, change in enumerate(log):
        if change is None:
            continue
        if index < last:
            apply_change(data, change)
        elif rng.random() < 0.5:
            _apply_sectors(data, change, rng)
    return bytes(data)


def _apply_sectors(data: bytearray, change: tuple[int, bytes | None], rng: random.Random) -> None:
    """Apply all of a write, or some of its sectors."""
    offset, written = change
    if written is None or rng.random() < 0.7:
        apply_change(data, change)
        return
    for start in range(offset - offset % SECTOR, offset + len(written), SECTOR):
        low, high = max(start, offset), min(start + SECTOR, offset + len(written))
        if rng.random() < 0.5:
            apply_change(data, (low, written[low - offset : high - offset]))
