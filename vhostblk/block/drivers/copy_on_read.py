# SPDX-License-Identifier: Apache-2.0
"""`copy-on-read`: copies data that is read from backing images to the top image.

A copy reads whole clusters and writes them back without changing the visible data, which needs the
permission WRITE_UNCHANGED. Another write to these clusters between the read and the write would be
lost. So copies are entered in the image's `WriteTracker`, like read-modify-write. The copy's own
write goes to the driver directly: through the edge it would wait for itself.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.errors import BlockError, NoNode
from vhostblk.block.graph import allocation
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.tracker import WriteTracker
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.block.io.iovec import IoVec

_PASSED_ON = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE

#: Maximum length of a piece.
COPY_BYTES = shaping.BOUNCE_BYTES


class CopyOnReadNode(FilterNode):
    """Copies the data that reads find in backing images, down to the image `bottom`."""

    driver = "copy-on-read"
    reopens = False

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.native_flags |= WriteFlags.WRITE_COMPRESSED
        self._bottom: BlockNode | None = None
        self._frozen: list[Edge] = []

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        if options.bottom is not UNSET:
            node._freeze_chain(options.bottom, graph)
        below = node._file.node
        if below.write_tracker is None:
            async with graph.drained([below]):  # all later writes are tracked
                node._track_writes()
        return node

    def _track_writes(self) -> None:
        """Make the image's node track all its writes; the node is drained."""
        below = self._file.node
        if below.write_tracker is None:
            below.write_tracker = WriteTracker()
            for edge in below.parents:
                edge.refresh()

    def child_changed(self, role: str) -> None:
        self._track_writes()

    def _freeze_chain(self, name: str, graph: Graph) -> None:
        """Find the bottom image, and freeze the links of the chain down to it."""
        bottom = graph.find(name, NoNode.BOTTOM)
        if bottom.is_filter:
            raise BlockError(f"Bottom node '{name}' is a filter")
        chain = []
        for edge in allocation.links(self):
            chain.append(edge)
            if edge.node is bottom:
                break
        else:
            raise BlockError(f"Bottom node '{name}' is not in the chain of '{self.node_name}'")
        for edge in chain:
            if edge.frozen:
                raise BlockError(
                    f"Cannot change '{edge.role}' link from '{edge.parent.node_name}' to "  # type: ignore[union-attr]
                    f"'{edge.node.node_name}'"
                )
        for edge in chain:
            edge.frozen = True
        self._bottom, self._frozen = bottom, chain

    async def close(self) -> None:
        for edge in self._frozen:
            edge.frozen = False

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        unchanged = Perm.WRITE_UNCHANGED
        return perm & _PASSED_ON | unchanged, shared & _PASSED_ON | unchanged

    async def preadv(self, offset: int, iov: IoVec) -> None:
        if not self.active:
            await self._file.preadv(offset, iov)
        elif self._bottom is None:
            await self._copy_on_read(offset, iov)
        else:
            await self._read_above(self._bottom, offset, iov)

    async def _read_above(self, bottom: BlockNode, offset: int, iov: IoVec) -> None:
        """Read in runs; copy those that come from an image between the top and `bottom`."""
        image, position = self._file.node, 0
        while position < iov.nbytes:
            start, left = offset + position, iov.nbytes - position
            allocated, count = await allocation.is_allocated(image, start, left)
            copied = False
            if not allocated:
                below = allocation.next_image(image)
                copied, count = await allocation.is_allocated_above(below, bottom, start, count)
            if not count:
                iov.slice(position, iov.nbytes).fill(0)
                return
            part = iov.slice(position, position + count)
            if copied:
                await self._copy_on_read(start, part)
            else:
                await self._file.preadv(start, part)
            position += count

    async def _copy_on_read(self, offset: int, iov: IoVec) -> None:
        """Copy the unallocated parts of all clusters of a range to the image, then read."""
        image = self._file.node
        tracker = image.write_tracker
        assert tracker is not None, "made when the filter was opened"
        cluster = image.subcluster_size or image.limits.request_alignment
        low = offset // cluster * cluster
        high = -(-(offset + iov.nbytes) // cluster) * cluster
        tracked = await tracker.enter(low, high, serialising=True)
        try:
            allocated, count = await allocation.is_allocated(image, offset, iov.nbytes)
            if not allocated or count < iov.nbytes:
                await _allocate(image, low, min(high, image.size))
            await shaping.read(image, offset, iov)
        finally:
            tracker.leave(tracked)


async def _allocate(image: BlockNode, start: int, stop: int) -> None:
    """Copy the unallocated parts of whole clusters to an image, with other writes kept off.

    The last cluster may be cut off by the end of the image.
    """
    from vhostblk.block.io.iovec import IoVec

    align = image.limits.request_alignment
    longest = min(image.limits.max_transfer or COPY_BYTES, COPY_BYTES)
    while start < stop:
        allocated, count = await allocation.is_allocated(image, start, stop - start)
        if not allocated:
            count = min(count, longest // align * align)
            data = IoVec.allocate(-(-count // align) * align, image.limits.memory_alignment)
            # The reader's memory may change during the write, so it can't be used.
            await image.preadv(start, data)
            await _write_unchanged(image, start, data)
        start += count


async def _write_unchanged(image: BlockNode, offset: int, data: IoVec) -> None:
    flags = WriteFlags.WRITE_UNCHANGED & image.native_flags
    if data.is_zero():
        try:
            await image.pwrite_zeroes(offset, data.nbytes, flags)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
        else:
            return
    await image.pwritev(offset, data, flags)
