# SPDX-License-Identifier: Apache-2.0
"""The base of filters: a primary child "file" provides data, size and limits.

A filter overrides the methods that it changes. By default it publishes no extent map, so that it
sees all requests.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.graph.node import BlockLimits, BlockNode, BlockStatus, Extent
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.extents import Treatment

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.schema.common import PreallocMode


class FilterNode(BlockNode):
    """A node that passes all requests to its child."""

    is_filter = True
    reopens = True

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self.native_flags = (
            WriteFlags.FUA
            | WriteFlags.MAY_UNMAP
            | WriteFlags.NO_FALLBACK
            | WriteFlags.WRITE_UNCHANGED
        )
        self._file: Edge

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        await graph.open_child(node, cls.primary_role, getattr(options, cls.primary_role))
        node.adopt_children()
        return node

    def adopt_children(self) -> None:
        """Set up the filter for its child, once the child is open."""
        self._file = self.children[self.primary_role]
        self.refresh_limits()

    def refresh_limits(self) -> None:
        # The edge below shapes requests for the child, so the filter has no limits of its own.
        below = self._file.node.limits
        self.limits = BlockLimits(
            discard_granularity=below.discard_granularity,
            optimal_transfer=below.optimal_transfer,
        )

    @property
    def size(self) -> int:
        return self._file.node.size

    @property
    def exact_size(self) -> int:
        return self._file.node.exact_size

    @property
    def grows_by_writing(self) -> bool:
        return self._file.node.grows_by_writing

    @property
    def cluster_size(self) -> int:
        return self._file.node.cluster_size

    @property
    def subcluster_size(self) -> int:
        return self._file.node.subcluster_size

    @property
    def allocated_size(self) -> int | None:
        return self._file.node.allocated_size

    def map_for_reading(self) -> ExtentMap | None:
        """Return the child's map for a filter that must see changes, but need not see reads."""
        below = self._file.extent_map()
        return below and replace(below, writable=False, discard=Treatment.ASK)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._file.preadv(offset, iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self._file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._file.pwrite_zeroes(offset, length, flags)

    async def reserve(self, offset: int, length: int) -> None:
        await self._file.reserve(offset, length)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._file.pdiscard(offset, length)

    async def flush(self) -> None:
        await self._file.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        extent = await self._file.block_status(offset, length)
        status = extent.status & ~BlockStatus.EOF
        if offset + extent.length == self.size:
            status |= BlockStatus.EOF
        return replace(extent, status=status)

    async def truncate(self, size: int) -> None:
        await self._file.truncate(size)

    async def grow(self, size: int, mode: PreallocMode) -> None:
        await self._file.truncate(size, mode)
        await self.truncate(size)  # for filters with state of the same length
