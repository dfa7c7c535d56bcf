# SPDX-License-Identifier: Apache-2.0
"""The child nodes of a plug-in driver.

They have the same operations as a driver, so that a filter can pass on what it doesn't change. They
accept any alignment and length: the block layer aligns and splits the requests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostblk.block.graph.node import BlockStatus
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from typing_extensions import Buffer

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.node import BlockNode


class Extent(NamedTuple):
    """A run of bytes with one status: `zero` if they read as zeroes; `hole` if not allocated.

    It may be longer than the queried range.
    """

    length: int
    zero: bool = False
    hole: bool = False


class Child:
    """A child node, with coroutines. Reads past its end return zeroes."""

    def __init__(self, parent: BlockNode, role: str) -> None:
        self._parent = parent
        self._role = role

    @property
    def _edge(self) -> Edge:
        # A reopen may replace the child.
        return self._parent.children[self._role]

    def size(self) -> int:
        """Return the node's length in bytes, now."""
        return self._edge.node.size

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        from vhostblk.block.io.iovec import IoVec  # imports numpy

        iov = IoVec.allocate(length)
        await self._edge.preadv(offset, iov)
        return iov.to_bytes()

    async def write(self, offset: int, data: Buffer) -> None:
        """Write `data`."""
        from vhostblk.block.io.iovec import IoVec

        with memoryview(data) as view:
            iov = IoVec.allocate(view.nbytes)
            iov.copy_from(view)
        await self._edge.pwritev(offset, iov)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; the node may deallocate its storage."""
        await self._edge.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP)

    async def discard(self, offset: int, length: int) -> None:
        """Deallocate the storage of a range, if the node's `discard` option allows it."""
        await self._edge.pdiscard(offset, length)

    async def flush(self) -> None:
        """Put completed writes on stable storage."""
        await self._edge.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of the run at `offset`, of at most `length` bytes."""
        found = await self._edge.block_status(offset, length)
        return Extent(
            found.length,
            zero=bool(found.status & BlockStatus.ZERO),
            hole=not found.status & BlockStatus.ALLOCATED,
        )

    async def truncate(self, size: int) -> None:
        """Change the node's length."""
        await self._edge.truncate(size)


class SyncChild:
    """A child node for the threads of a `SyncDriver`; each call waits for its result."""

    def __init__(self, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        self._child = child
        self._loop = loop

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def size(self) -> int:
        """Return the node's length in bytes, now."""
        return self._child.size()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        data: bytes = self._wait(self._child.read(offset, length))
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Write `data`."""
        self._wait(self._child.write(offset, data))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; the node may deallocate its storage."""
        self._wait(self._child.write_zeroes(offset, length))

    def discard(self, offset: int, length: int) -> None:
        """Deallocate the storage of a range, if the node's `discard` option allows it."""
        self._wait(self._child.discard(offset, length))

    def flush(self) -> None:
        """Put completed writes on stable storage."""
        self._wait(self._child.flush())

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of the run at `offset`, of at most `length` bytes."""
        extent: Extent = self._wait(self._child.block_status(offset, length))
        return extent

    def truncate(self, size: int) -> None:
        """Change the node's length."""
        self._wait(self._child.truncate(size))
