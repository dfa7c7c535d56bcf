# SPDX-License-Identifier: Apache-2.0
"""`snapshot-access`: the disk as it was when the filter below was opened.

It is no filter: its data is not that of its child. It does no ordinary I/O on the child, so it
takes no permissions.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block.copy.snapshot_source import SnapshotSource
from vhostblk.block.graph.edge import supported
from vhostblk.block.graph.node import BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec


class SnapshotAccessNode(BlockNode):
    """Reads the snapshot that the child "file" keeps; fails with ENOTSUP if it keeps none."""

    driver = "snapshot-access"
    named_by_child = True
    described_by_child = False

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self._file: Edge
        self._size = 0

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        await graph.open_child(node, "file", options.file)
        node._file = node.children["file"]
        node._size = node._file.node.size
        return node

    @property
    def size(self) -> int:
        return self._size

    @property
    def allocated_size(self) -> int | None:
        return self._file.node.allocated_size

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        return Perm.NONE, Perm.ALL

    @property
    def _source(self) -> SnapshotSource:
        """The capability of the child that keeps the snapshot; raises OSError if there is none."""
        source: SnapshotSource | None = self._file.node.capability(SnapshotSource)
        return supported(source)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._source.snapshot_preadv(offset, iov)

    async def block_status(self, offset: int, length: int) -> Extent:
        extent = await self._source.snapshot_block_status(offset, length)
        status = extent.status & ~BlockStatus.EOF
        if offset + extent.length == self._size:
            status |= BlockStatus.EOF
        return replace(extent, status=status)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._source.snapshot_pdiscard(offset, length)
