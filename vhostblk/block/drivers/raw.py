# SPDX-License-Identifier: Apache-2.0
"""`raw`: all bytes of another node, or a window of them.

Requests have no alignment here. Several windows may share a block of the node below, so
read-modify-write has to happen there.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from vhostblk.block import SECTOR
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.edge import MAX_SIZE
from vhostblk.block.graph.new_images import MakesImages
from vhostblk.block.graph.node import BlockLimits, BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.zones import TakesZonedChildren, check_zoned_child
from vhostblk.schema.base import UNSET
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.engine.extents import ExtentMap


class RawNode(BlockNode, MakesImages, TakesZonedChildren):
    """Bytes [offset, offset + size) of the child "file"."""

    driver = "raw"
    reopens = True
    mutable_options = data_options = frozenset({"offset", "size"})

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.take_options(options)
        self._file: Edge
        self.native_flags = WriteFlags.FUA | WriteFlags.WRITE_UNCHANGED  # passed on to the child

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        node.prepare_reopen(options)
        await graph.open_child(node, "file", options.file)
        node._file = node.children["file"]
        node.check_children()
        node.refresh_limits()
        return node

    def prepare_reopen(self, options: Any) -> None:
        length = 0 if options.size is UNSET else options.size
        if length % SECTOR:
            raise BlockError(f"Specified size is not multiple of {SECTOR}")
        if options.offset < 0 or length < 0:
            raise BlockError("raw: 'offset' and 'size' must not be negative")

    def take_options(self, options: Any) -> None:
        super().take_options(options)
        self.offset: int = options.offset
        #: The window's length, if it is fixed.
        self.length: int | None = None if options.size is UNSET else options.size

    def refresh_limits(self) -> None:
        below = self._file.node.limits
        self.limits = BlockLimits(
            discard_granularity=below.discard_granularity,
            optimal_transfer=below.optimal_transfer,
        )
        if self.is_window or self._file.node.take_debug_event is not None:
            for name in ("preadv", "pwritev", "pread_segments", "known_zero", "known_zeroes"):
                self.__dict__.pop(name, None)
        else:
            # The fast path: requests go directly to the child's edge.
            self.preadv = self._file.preadv  # type: ignore[method-assign]
            self.pwritev = self._file.pwritev  # type: ignore[method-assign]
            self.pread_segments = self._file.pread_segments  # type: ignore[method-assign]
            self.known_zero = self._file.known_zero  # type: ignore[method-assign]
            self.known_zeroes = self._file.known_zeroes  # type: ignore[method-assign]

    @property
    def cluster_size(self) -> int:
        return self._file.node.cluster_size

    @property
    def allocated_size(self) -> int | None:
        return self._file.node.allocated_size

    @property
    def strong_options(self) -> dict[str, Any]:
        given: dict[str, Any] = {"offset": self.offset} if self.offset else {}
        return given if self.length is None else {**given, "size": self.length}

    def check_children(self) -> None:
        check_zoned_child(self, self._file.node)
        available = self._file.node.size
        if self.offset > available:
            raise BlockError(
                f"Offset ({self.offset}) cannot be greater than size of the containing file "
                f"({available})"
            )
        if self.length is not None and self.offset + self.length > available:
            raise BlockError(
                f"The sum of offset ({self.offset}) and size ({self.length}) has to be smaller or "
                f"equal to the  actual size of the containing file ({available})"
            )

    @property
    def is_window(self) -> bool:
        """Whether only a part of the child is shown."""
        return self.offset > 0 or self.length is not None

    @property
    def size(self) -> int:
        available = self._file.node.size
        if not self.is_window:
            return available
        if self.length is not None:
            return self.length
        return max(available - self.offset, 0) // SECTOR * SECTOR

    def shows_child(self, options: Any) -> bool:
        """Return whether the options select the whole child."""
        return not options.offset and options.size is UNSET

    @property
    def grows_by_writing(self) -> bool:
        return self.length is None and self._file.node.grows_by_writing

    @property
    def grows_with_zeroes(self) -> bool:
        return not self.is_window and self._file.node.grows_with_zeroes

    @property
    def exact_size(self) -> int:
        return max(min(self.size, self._file.node.exact_size - self.offset), 0)

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Pass permissions on; a window doesn't share RESIZE of the child."""
        if self.is_window:
            shared &= ~Perm.RESIZE
        return perm, shared

    async def preadv(self, offset: int, iov: IoVec) -> None:
        self.debug_event("read_aio")
        await self._file.preadv(self.offset + offset, iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        self.debug_event("write_aio")
        await self._file.pwritev(self.offset + offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._file.pwrite_zeroes(self.offset + offset, length, flags)

    async def reserve(self, offset: int, length: int) -> None:
        await self._file.reserve(self.offset + offset, length)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._file.pdiscard(self.offset + offset, length)

    def capability(self, kind: type) -> Any:
        if isinstance(self, kind):
            return self
        from vhostblk.block.graph.passing import passed_on  # rarely needed

        return passed_on(self._file, kind, offset=self.offset, whole=not self.is_window)

    @property
    def takes_zoned_children(self) -> bool:
        return not self.is_window

    async def flush(self) -> None:
        await self._file.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        extent = await self._file.block_status(self.offset + offset, length)
        status = extent.status & ~BlockStatus.EOF
        if offset + extent.length == self.size:
            status |= BlockStatus.EOF
        return replace(extent, status=status)

    def known_zero(self, offset: int, length: int) -> bool:
        return self._file.known_zero(self.offset + offset, length)

    def extent_map(self) -> ExtentMap | None:
        below = self._file.extent_map()
        return below and below.window(self.offset, self.size)

    async def truncate(self, size: int) -> None:
        await self.grow(size, PreallocMode.OFF)

    async def grow(self, size: int, mode: PreallocMode) -> None:
        if self.length is not None:
            raise OSError(errno.ENOTSUP, "Cannot resize fixed-size raw disks")
        if size > MAX_SIZE - self.offset:
            raise OSError(errno.EINVAL, "Disk size too large for the chosen offset")
        await self._file.truncate(self.offset + size, mode)
