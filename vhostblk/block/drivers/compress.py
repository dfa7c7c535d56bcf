# SPDX-License-Identifier: Apache-2.0
"""`compress`: makes the image below store writes compressed.

Only whole clusters can be compressed. So the filter's request alignment is the cluster size, and
the edge above does read-modify-write.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap


class CompressNode(FilterNode):
    """Adds the flag WRITE_COMPRESSED to writes."""

    driver = "compress"
    reopens = False

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        node.check_children()
        return node

    def check_children(self) -> None:
        below = self._file.node
        if not below.native_flags & WriteFlags.WRITE_COMPRESSED:
            raise BlockError(f"Compression is not supported for underlying format: {below.driver}")

    def refresh_limits(self) -> None:
        super().refresh_limits()
        if self.cluster_size:
            self.limits = replace(self.limits, request_alignment=self.cluster_size)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        inside = min(self.size - offset, iov.nbytes)
        await self._file.preadv(offset, iov.slice(0, inside))
        if inside < iov.nbytes:  # the rest of the last cluster
            iov.slice(inside, iov.nbytes).fill(0)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        inside = min(self.size - offset, iov.nbytes)
        await self._file.pwritev(offset, iov.slice(0, inside), flags | WriteFlags.WRITE_COMPRESSED)

    def extent_map(self) -> ExtentMap | None:
        return self.map_for_reading()
