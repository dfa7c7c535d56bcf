# SPDX-License-Identifier: Apache-2.0
"""An open disk of a driver, with requests on bytes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import drive
from vhostblk.plugin import Extent, register
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from vhostblk.plugin.node import PluginNode

#: Seconds after which a missing result fails the test.
PATIENCE = 30.0


class Disk:
    """The operations of a disk's user. Requests run as in the daemon: not in tasks."""

    def __init__(self, node: PluginNode, backend: BlockBackend) -> None:
        self.node = node
        self._backend = backend

    @property
    def size(self) -> int:
        """The length of the disk."""
        return self.node.size

    @property
    def writable(self) -> bool:
        """Whether the disk can be written."""
        return not self.node.read_only

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        drive(coroutine, done)
        return await asyncio.wait_for(future, PATIENCE)

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes; the buffer is not zeroed beforehand."""
        from vhostblk.block.io.iovec import IoVec

        iov = IoVec.allocate(length)
        iov.fill(0xE5)
        await self._run(self._backend.preadv(offset, iov))
        return iov.to_bytes()

    async def write(self, offset: int, data: bytes) -> None:
        """Write bytes, in two segments, and overwrite the buffer afterwards, as a guest may."""
        from vhostblk.block.io.iovec import IoVec

        half = len(data) // 2
        iov = IoVec.from_buffers([bytearray(data[:half]), bytearray(data[half:])])
        await self._run(self._backend.pwritev(offset, iov))
        iov.fill(0x5E)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes."""
        await self._run(self._backend.pwrite_zeroes(offset, length))

    async def discard(self, offset: int, length: int) -> None:
        """Discard a range."""
        await self._run(self._backend.pdiscard(offset, length))

    async def flush(self) -> None:
        """Flush."""
        await self._run(self._backend.flush())

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of the run at `offset`."""
        found = await self._run(self._backend.block_status(offset, length))
        zero = bool(found.status & BlockStatus.ZERO)
        return Extent(found.length, zero, not found.status & BlockStatus.ALLOCATED)


@asynccontextmanager
async def opened(
    driver: Any, options: dict[str, Any], *, read_only: bool = False
) -> AsyncIterator[Disk]:
    """Open a driver with options in wire form; `discard` sets the node's option."""
    register(driver)
    name = driver.options_type.__struct_config__.tag
    common = {"driver": name, "node-name": "disk", "read-only": read_only, "discard": "unmap"}
    graph = Graph()
    node: Any = await graph.add(from_json(BlockdevOptions, {**common, **options}))
    try:
        perm = Perm.CONSISTENT_READ
        if not node.read_only:
            perm |= Perm.WRITE
        backend = BlockBackend("test", perm)
        backend.attach(graph, node)
        try:
            yield Disk(node, backend)
        finally:
            await backend.detach()
    finally:
        await graph.close()


class Complaints(logging.Handler):
    """Collects logged failures."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text and exception."""
        line = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            line += f": {record.exc_info[1]!r}"
        self.lines.append(line)
