# SPDX-License-Identifier: Apache-2.0
"""The nodes that a plug-in lies on.

They have the operations of a driver, so that a filter passes on what it doesn't change. Here
everything is allowed: any alignment and length; the layer above a driver sees to it.
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
    """A run of bytes with one status: `zero`, if they read as zeroes; `hole`, if nothing is stored.

    It may be longer than what was asked for.
    """

    length: int
    zero: bool = False
    hole: bool = False


class Child:
    """A node below, for coroutines. Reads past its end return zeroes."""

    def __init__(self, parent: BlockNode, role: str) -> None:
        self._parent = parent
        self._role = role

    @property
    def _edge(self) -> Edge:
        # Reopening may put another node in the place of this one.
        return self._parent.children[self._role]

    def size(self) -> int:
        """Return the node's length in bytes, now."""
        return self._edge.node.size

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        from vhostblk.block.io.iovec import IoVec  # brings numpy

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
        """Make a range read as zeroes; storage may be given up where the node lets it."""
        await self._edge.pwrite_zeroes(offset, length, WriteFlags.MAY_UNMAP)

    async def discard(self, offset: int, length: int) -> None:
        """Give up the storage of a range, if the node's `discard` option lets it."""
        await self._edge.pdiscard(offset, length)

    async def flush(self) -> None:
        """Put completed writes on stable storage."""
        await self._edge.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        """Describe the run at `offset`, of at most `length` bytes."""
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
    """A node below, for the threads of a `SyncDriver`: each call waits for its end."""

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
        """Make a range read as zeroes; storage may be given up where the node lets it."""
        self._wait(self._child.write_zeroes(offset, length))

    def discard(self, offset: int, length: int) -> None:
        """Give up the storage of a range, if the node's `discard` option lets it."""
        self._wait(self._child.discard(offset, length))

    def flush(self) -> None:
        """Put completed writes on stable storage."""
        self._wait(self._child.flush())

    def block_status(self, offset: int, length: int) -> Extent:
        """Describe the run at `offset`, of at most `length` bytes."""
        extent: Extent = self._wait(self._child.block_status(offset, length))
        return extent

    def truncate(self, size: int) -> None:
        """Change the node's length."""
        self._wait(self._child.truncate(size))
