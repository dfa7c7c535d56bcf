# SPDX-License-Identifier: Apache-2.0
"""`preallocate`: extends a file ahead of its writer.

The filter is inserted between a format and its file. A write past the end of the file first extends
the file with zeroes, by `prealloc-size` more than needed and up to a multiple of `prealloc-align`.
So most writes to new space need not extend the file. To users, the file ends where their data ends.

    0 ............ zero_start ... data_end ............ file_end
                   |-- read as zeroes, already there ---|

These offsets are only valid while no other user changes the file. So they are kept while the users
have the permissions to write and to resize, and the filter then doesn't share these permissions.
Unused space is cut off when the users give up these permissions, when the node becomes read-only or
inactive, before users bypass the node (`blockdev-reopen`), and when it is closed. Writes to the
range of an extension wait until it is done (`_tracker`).
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block import SECTOR
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.permission_update import update_permissions
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.tracker import WriteTracker
from vhostblk.errors import log_failure, reason
from vhostblk.schema.base import UNSET
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap

logger = logging.getLogger(__name__)

DEFAULT_ALIGN = 1 << 20
DEFAULT_SIZE = 128 << 20
_GROW = Perm.WRITE | Perm.RESIZE
#: Past the end of any file.
_END = 1 << 63


class PreallocateNode(FilterNode):
    """Extends the child "file" ahead of writes."""

    driver = "preallocate"
    mutable_options = frozenset({"prealloc_align", "prealloc_size"})
    kept_options = mutable_options

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        #: None: unknown. The other offsets are then meaningless.
        self._data_end: int | None = None
        self._zero_start = 0
        #: -1: to be looked up.
        self._file_end = -1
        self._tracker = WriteTracker()
        #: The task that cuts off unused space and gives up the permissions.
        self._dropping: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        node.prepare_reopen(options)
        node.check_children()
        return node

    def prepare_reopen(self, options: Any) -> None:
        align, ahead = _sizes(options)
        if align < 0 or ahead < 0:
            raise BlockError("preallocate: 'prealloc-align' and 'prealloc-size' must be positive")
        if align % SECTOR:
            raise BlockError(
                f"prealloc-align parameter of preallocate filter is not aligned to {SECTOR}"
            )

    def check_children(self) -> None:
        align, below = _sizes(self.options)[0], self._file.node.limits.request_alignment
        if align % below:
            raise BlockError(
                "prealloc-align parameter of preallocate filter is not aligned to underlying node "
                f"request alignment ({below})"
            )

    @property
    def size(self) -> int:
        return super().size if self._data_end is None else self._data_end

    @property
    def exact_size(self) -> int:
        return super().exact_size if self._data_end is None else self._data_end

    def extent_map(self) -> ExtentMap | None:
        below = self.map_for_reading()
        return below and below.window(0, self.size)

    # Permissions.

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if perm & _GROW == _GROW or self._data_end is not None:
            return perm | _GROW, shared & ~_GROW
        return perm, shared

    def apply_permissions(self, perm: Perm, shared: Perm) -> None:
        gone = perm & _GROW != _GROW
        if gone and self._data_end is not None and self._dropping is None:
            self._dropping = asyncio.get_running_loop().create_task(
                self._drop_later(), name=f"{self.filename}: dropping the preallocation"
            )
            self._dropping.add_done_callback(log_failure)

    async def _drop_later(self) -> None:
        """Schedule dropping the preallocation, unless users that write have come back."""
        try:
            if self.granted[0] & _GROW != _GROW:
                await self._drop()
        except (OSError, BlockError) as error:
            self._complain(error)
        finally:
            self._dropping = None

    async def _drop(self) -> None:
        """Cut off unused space, and share the file with others."""
        await self._truncate_to_data()
        self._data_end, self.remembered_roles = None, frozenset()
        update_permissions([self])

    async def _truncate_to_data(self) -> None:
        if self._data_end is None:
            return
        if self._file_end < 0:
            self._file_end = self._file.node.size
        if self._data_end < self._file_end:
            self._file_end = -1
            await self._file.truncate(self._data_end)
            self._file_end = self._data_end

    async def release_children(self) -> None:
        await self.settle()
        if self._data_end is not None:
            await self._drop()

    async def give_up_writing(self) -> None:
        await self.release_children()

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        """Do nothing: unused space was cut off, and the new file is examined when needed."""
        assert self._data_end is None, "dropped before the data was replaced"

    async def settle(self) -> None:
        while self._dropping is not None:
            await asyncio.wait({self._dropping})

    async def close(self) -> None:
        try:
            await self._truncate_to_data()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        logger.warning("%s: the preallocation is not dropped: %s", self.filename, reason(error))

    # Writing.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        end = offset + iov.nbytes
        await self._before_write(offset, end, zeroes=False)
        tracked = await self._tracker.enter(offset, end, serialising=False)
        try:
            await self._file.pwritev(offset, iov, flags)
        finally:
            self._tracker.leave(tracked)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        end = offset + length
        may_merge = not flags & ~WriteFlags.NO_FALLBACK
        if await self._before_write(offset, end, zeroes=may_merge):
            return
        tracked = await self._tracker.enter(offset, end, serialising=False)
        try:
            await self._file.pwrite_zeroes(offset, length, flags)
        finally:
            self._tracker.leave(tracked)

    async def _before_write(self, offset: int, end: int, *, zeroes: bool) -> bool:
        """Extend the file for a write up to `end`.

        With `zeroes`, return whether the range already reads as zeroes.
        """
        while self._dropping is not None:
            await self._dropping
        if self._data_end is None:
            if self._file.perm & _GROW != _GROW:
                return False
            self._data_end = self._zero_start = self._file_end = self._file.node.size
            self.remembered_roles = frozenset({"file"})
        if not zeroes:
            self._zero_start = max(self._zero_start, end)
        if end <= self._data_end:
            return False
        self._data_end = end
        if end <= self._known_file_end():
            return zeroes and offset >= self._zero_start
        tracked = await self._tracker.enter(self._known_file_end(), _END, serialising=True)
        try:
            file_end = self._known_file_end()
            if end <= file_end:  # another write has extended the file
                return False
            return await self._extend(offset, end, file_end, zeroes=zeroes)
        finally:
            self._tracker.leave(tracked)

    def _known_file_end(self) -> int:
        if self._file_end < 0:
            self._file_end = self._file.node.size
        return self._file_end

    async def _extend(self, offset: int, end: int, file_end: int, *, zeroes: bool) -> bool:
        """Extend the file past `end`; return whether bytes from `offset` on become zeroes."""
        below = self._file.node.limits.request_alignment
        align, ahead = _sizes(self.options)
        align = max(align, below)
        start = -(-(min(offset, file_end) if zeroes else file_end) // below) * below
        stop = -(-(max(start, end) + ahead) // align) * align
        try:
            await self._file.pwrite_zeroes(start, stop - start, WriteFlags.NO_FALLBACK)
        except OSError:
            self._file_end = -1
            return False
        self._file_end = stop
        return zeroes and start <= offset

    async def truncate(self, size: int) -> None:
        await self.grow(size, PreallocMode.OFF)

    async def grow(self, size: int, mode: PreallocMode) -> None:
        while self._dropping is not None:
            await self._dropping
        if self._data_end is not None and size > self._data_end:
            await self._truncate_to_data()
        try:
            await self._file.truncate(size, mode)
        except OSError:
            self._file_end = -1
            raise
        if self._data_end is not None:
            self._data_end = self._zero_start = self._file_end = self._file.node.size


def _sizes(options: Any) -> tuple[int, int]:
    """Return `prealloc-align` and `prealloc-size`."""
    align, ahead = options.prealloc_align, options.prealloc_size
    return (
        DEFAULT_ALIGN if align is UNSET else align,
        DEFAULT_SIZE if ahead is UNSET else ahead,
    )
