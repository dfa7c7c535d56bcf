# SPDX-License-Identifier: Apache-2.0
"""`Edge`: the use of a node by one parent, and the I/O through it.

An edge leads from a parent (a node or a `BlockBackend`) to a node. It has the permissions that the
parent takes and shares. It also does what is common to all drivers: bounds checks, read-only
checks, alignment, splitting, detect-zeroes, the discard option, FUA. An ordinary request needs none
of these: `preadv()` and `pwritev()` are plain functions that compare a few integers and return the
driver's coroutine.
"""

from __future__ import annotations

import errno
import sys
from functools import partial
from operator import add
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from vhostblk.block.graph.node import BlockNode, BlockStatus, Extent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.completion import gather
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.tracker import WriteTracker
from vhostblk.block.zones import zones_of
from vhostblk.engine.extents import ExtentMap, Treatment
from vhostblk.errors import os_error
from vhostblk.schema.blockdev import BlockdevDetectZeroesOptions, BlockdevDiscardOptions
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.node import Failures
    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import Zone, ZoneOp


T = TypeVar("T")

#: The maximum disk size, as in QEMU.
MAX_SIZE = (1 << 63) - (1 << 30)


def supported(capability: T | None) -> T:
    """Return a node's capability; raises OSError if the node doesn't have it."""
    if capability is None:
        raise os_error(errno.ENOTSUP)
    return capability


class Edge:
    """The edge from `parent` to `node`, its child in the given `role`.

    `perm` and `shared` hold inside this process. `shared_outside` (a subset of `shared`) is shared
    with other processes, by means of image locks.
    """

    __slots__ = (
        "_align_mask",
        "_detect_zeroes",
        "_max_iov",
        "_max_transfer",
        "_memory_alignment",
        "_node_preadv",
        "_node_pwritev",
        "_plain_flags",
        "_takes_bursts",
        "exclusive",
        "flushes",
        "frozen",
        "node",
        "parent",
        "perm",
        "role",
        "shared",
        "shared_outside",
    )

    def __init__(
        self,
        parent: BlockNode | BlockBackend,
        role: str,
        node: BlockNode,
        perm: Perm = Perm.NONE,
        shared: Perm = Perm.ALL,
        shared_outside: Perm = Perm.ALL,
    ) -> None:
        self.parent = parent
        self.role = role
        self.node = node
        #: The edge must not be moved to another node.
        self.frozen = False
        #: False: flushes are skipped, because the image is being created and a crash may lose it.
        self.flushes = True
        #: The node is being formatted: other users are excluded, whatever the parent shares.
        self.exclusive = False
        self.perm = perm
        self.shared = shared
        self.shared_outside = shared_outside
        self._plain_flags = -1
        self.refresh()

    def refresh(self) -> None:
        """Update what depends on the node's limits and options, or on permissions."""
        node = self.node
        limits = node.limits
        self._align_mask = limits.request_alignment - 1
        self._memory_alignment = limits.memory_alignment
        self._max_transfer = limits.max_transfer or sys.maxsize
        self._max_iov = limits.max_iov
        self._detect_zeroes = node.options.detect_zeroes is not BlockdevDetectZeroesOptions.OFF
        if self._plain_flags >= 0 and node.counts_writes:
            node.write_generation += 1  # some writes may not have been counted
        #: Flags that a write on the fast path may have; -1: no write may take the fast path.
        self._plain_flags = int(node.native_flags)
        if not self.writable or node.write_threshold or self._detect_zeroes or node.counts_writes:
            self._plain_flags = -1
        if limits.request_alignment > self._parent_alignment():
            self._track_writes()
        self._node_preadv = node.preadv
        self._choose_pwritev()

    def _parent_alignment(self) -> int:
        """Return the alignment of all requests of the parent."""
        return 1 if isinstance(self.parent, BlockNode) else self.parent.request_alignment

    def _track_writes(self) -> None:
        """Serialise writes from now on: some of this parent's will need read-modify-write."""
        node = self.node
        if node.write_tracker is not None:
            # Block sizes change in drained sections only, so the parent has no writes in flight.
            node.write_tracker.forget(self.parent)
            return
        # Users of whole blocks that were not tracked so far: `BlockBackend`s.
        align = node.limits.request_alignment
        aligned = [edge for edge in node.parents if edge._parent_alignment() >= align]
        users = [edge.parent for edge in aligned if not isinstance(edge.parent, BlockNode)]
        node.write_tracker = WriteTracker(earlier=users)
        for edge in node.parents:
            edge._choose_pwritev()

    def _choose_pwritev(self) -> None:
        node = self.node
        self._node_pwritev: Callable[..., Coroutine[object, object, None]] = node.pwritev
        watched = node.write_tracker is not None or node.recorders
        if watched:
            self._node_pwritev = partial(shaping.write_aligned, node)
        self._takes_bursts = (
            node.takes_bursts
            and not watched
            and self._plain_flags >= 0
            and self._memory_alignment == 1
        )

    @property
    def writable(self) -> bool:
        """Whether the parent may write."""
        return bool(self.perm & Perm.WRITE) and not self.node.read_only

    @property
    def parent_is_node(self) -> bool:
        """Whether the parent is a node. A `BlockBackend` does no I/O past the end."""
        return isinstance(self.parent, BlockNode)

    @property
    def _may_grow(self) -> bool:
        """Whether the parent may write past the node's end."""
        parent = self.parent
        return bool(self.perm & Perm.RESIZE) and (
            isinstance(parent, BlockNode) or parent.writes_past_end
        )

    def describe(self) -> str:
        """Describe the edge for messages, in QEMU's words."""
        return (
            f"{self.parent.description} (uses node '{self.node.node_name}' as '{self.role}' child)"
        )

    # Reading.

    def preadv(self, offset: int, iov: IoVec) -> Coroutine[object, object, None]:
        """Fill all of `iov` from `offset`."""
        nbytes = iov.nbytes
        if (
            (offset | nbytes) & self._align_mask
            or offset < 0
            or offset + nbytes > self.node.size
            or nbytes > self._max_transfer
            or iov.count > self._max_iov
            or (self._memory_alignment > 1 and not iov.aligned(self._memory_alignment))
        ):
            return self._preadv_shaped(offset, iov)
        return self._node_preadv(offset, iov)

    async def _preadv_shaped(self, offset: int, iov: IoVec) -> None:
        inside = min(max(self.node.size - offset, 0), iov.nbytes)
        if offset < 0 or (inside < iov.nbytes and not self.parent_is_node):
            raise os_error(errno.EIO)
        if inside:
            await shaping.read(self.node, offset, iov.slice(0, inside))
        if inside < iov.nbytes:  # a format reads zeroes past the end of its file
            iov.slice(inside, iov.nbytes).fill(0)

    def pread_segments(self, offsets: list[int], iov: IoVec) -> Coroutine[object, object, Failures]:
        """Fill each segment of `iov` from its own offset; return the errors of the segments."""
        lengths: list[int] = iov.segments["len"].tolist()
        if self._memory_alignment == 1 and self._are_plain(offsets, lengths):
            return self.node.pread_segments(offsets, iov)
        return gather(
            [self.preadv(offset, iov.segment(index)) for index, offset in enumerate(offsets)]
        )

    def _are_plain(self, offsets: list[int], lengths: list[int]) -> bool:
        """Return whether the driver can take all these ranges unchanged."""
        mask = self._align_mask
        return (
            all(lengths)
            and min(offsets) >= 0
            and max(map(add, offsets, lengths)) <= self.node.size
            and max(lengths) <= self._max_transfer
            and not (mask and any(number & mask for number in (*offsets, *lengths)))
        )

    # Writing.

    def pwritev(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> Coroutine[object, object, None]:
        """Write all of `iov` at `offset`."""
        nbytes = iov.nbytes
        if (
            self._plain_flags < 0
            or not nbytes
            or (flags and int(flags) & ~self._plain_flags)
            or (offset | nbytes) & self._align_mask
            or offset < 0
            or offset + nbytes > self.node.size
            or nbytes > self._max_transfer
            or iov.count > self._max_iov
            or (self._memory_alignment > 1 and not iov.aligned(self._memory_alignment))
        ):
            return self._pwritev_shaped(offset, iov, flags)
        return self._node_pwritev(offset, iov, flags)

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        """Write several requests at once; None: nothing has begun, write them one by one."""
        if (
            not self._takes_bursts
            or max([iov.count for iov in iovs]) > self._max_iov
            or not self._are_plain(offsets, [iov.nbytes for iov in iovs])
        ):
            return None
        return self.node.pwritev_burst(offsets, iovs)

    async def _pwritev_shaped(self, offset: int, iov: IoVec, flags: WriteFlags) -> None:
        self._check_write(offset, iov.nbytes, flags)
        self._check_last_block(offset + iov.nbytes)
        if flags & WriteFlags.WRITE_COMPRESSED & ~self.node.native_flags:
            raise os_error(errno.ENOTSUP)
        self._watch_threshold(offset + iov.nbytes)
        if self._detect_zeroes and iov.nbytes and iov.is_zero():
            if self.node.options.detect_zeroes is BlockdevDetectZeroesOptions.UNMAP:
                flags |= WriteFlags.MAY_UNMAP
            await self.pwrite_zeroes(offset, iov.nbytes, flags)
            return
        size = self.node.size
        if iov.nbytes:
            await shaping.write(self.node, offset, iov, flags & self.node.native_flags)
        await self._finish_write(flags, size)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        """Make a range read as zeroes, also if the driver has no write-zeroes request."""
        self._check_write(offset, length, flags)
        self._check_last_block(offset + length)
        self._watch_threshold(offset + length)
        node = self.node
        if node.options.discard is not BlockdevDiscardOptions.UNMAP:
            flags &= ~WriteFlags.MAY_UNMAP
        size = node.size
        if length:
            passed = flags if node.native_flags & WriteFlags.FUA else flags & ~WriteFlags.FUA
            await shaping.write_zeroes(node, offset, length, passed)
        await self._finish_write(flags, size)

    async def reserve(self, offset: int, length: int) -> None:
        """Allocate storage for a range, if the node can, without changing data; raises OSError."""
        self._check_write(offset, length)
        await self.node.reserve(offset, length)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Discard a range, if the node's option `discard` allows it."""
        node = self.node
        if self._may_grow and offset + length > node.size:
            length = node.size - offset  # nothing to discard past the end
            if length <= 0:
                return
        self._check_write(offset, length)
        if node.options.discard is not BlockdevDiscardOptions.UNMAP:
            return
        tracker = node.write_tracker
        if tracker is None:
            await shaping.discard(node, offset, length)
            return
        tracked = await tracker.enter(offset, offset + length, serialising=False)
        try:
            await shaping.discard(node, offset, length)
        finally:
            tracker.leave(tracked)

    async def psecure_erase(self, offset: int, length: int) -> None:
        """Erase a range securely. This is no hint, so the option `discard` has no effect."""
        from vhostblk.block.erase import ErasesSecurely  # rarely needed

        self._check_write(offset, length)
        node = self.node
        try:
            eraser: ErasesSecurely | None = node.capability(ErasesSecurely)
            await supported(eraser).psecure_erase(offset, length)
        finally:
            node.write_generation += 1
            node.record_change(offset, length)

    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        """Return at most `count` zones, from the one that contains `offset`."""
        return await supported(zones_of(self.node)).zone_report(offset, count)

    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        """Open, close, finish or reset the zones of a range."""
        self._check_write(offset, length)
        node = self.node
        try:
            await supported(zones_of(node)).zone_mgmt(op, offset, length)
        finally:
            node.write_generation += 1
            node.record_change(offset, length)

    async def zone_append(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> int:
        """Append `iov` to the zone at `offset`; return the offset of the data."""
        self._check_write(offset, iov.nbytes)
        node = self.node
        zones = supported(zones_of(node))
        place = await zones.zone_append(offset, iov, flags & node.native_flags)
        node.write_generation += 1
        node.record_change(place, iov.nbytes)
        await self._finish_write(flags, node.size)
        return place

    def _check_write(self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE) -> None:
        unchanged = flags & WriteFlags.WRITE_UNCHANGED and self.perm & Perm.WRITE_UNCHANGED
        if not self.writable and (not unchanged or self.node.read_only):
            raise os_error(errno.EPERM)
        if offset < 0 or length < 0:
            raise os_error(errno.EIO)
        if offset + length > self.node.size:
            if not self._may_grow:
                raise os_error(errno.EIO)
            if not self.node.grows_by_writing:
                raise os_error(errno.ENOSPC)

    def _check_last_block(self, end: int) -> None:
        """Raise OSError if a write would be rounded up to a length past the node's end.

        A new writer can't attach to such a node. So this happens only if the node became shorter,
        or its blocks became larger, after the writer attached.
        """
        mask = self._align_mask
        if end & mask and (end | mask) >= self.node.size and not self.perm & Perm.RESIZE:
            raise os_error(errno.EPERM)

    def _watch_threshold(self, end: int) -> None:
        node = self.node
        if 0 < node.write_threshold < end and node.on_threshold is not None:
            node.on_threshold(node, end)

    async def _finish_write(self, flags: WriteFlags, old_size: int) -> None:
        if self.node.size != old_size:
            notify_resize(self.node)
        if flags & WriteFlags.FUA and not self.node.native_flags & WriteFlags.FUA:
            await self.flush()

    # The rest.

    async def flush(self) -> None:
        """Put completed writes on stable storage."""
        if self.flushes:
            await flush_node(self.node)

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of a run at `offset`, of at most `length` bytes."""
        if offset < 0 or length < 0:
            raise os_error(errno.EINVAL)
        inside = min(length, self.node.size - offset)
        if inside <= 0:
            return Extent(length, BlockStatus.ZERO | BlockStatus.EOF)
        return await self.node.block_status(offset, inside)

    def known_zero(self, offset: int, length: int) -> bool:
        """Return whether a range is known, without I/O, to read as zeroes."""
        inside = min(length, self.node.size - offset)
        return inside <= 0 or self.node.known_zero(offset, inside)

    def known_zeroes(self, offsets: list[int], length: int) -> list[bool]:
        """Return, without I/O, for each range whether it is known to read as zeroes."""
        if max(offsets) + length <= self.node.size:
            return self.node.known_zeroes(offsets, length)
        return [self.known_zero(offset, length) for offset in offsets]

    def extent_map(self) -> ExtentMap | None:
        """Return the node's extent map, limited by the edge's permissions and node options."""
        node_map = self.node.extent_map()
        if node_map is None:
            return None
        options = self.node.options
        flush, discard = node_map.flush, node_map.discard
        if options.cache.no_flush and not self.node.children:
            flush = Treatment.IGNORE
        if not self.writable:
            discard = Treatment.ASK  # the request must fail
        elif options.discard is not BlockdevDiscardOptions.UNMAP:
            discard = Treatment.IGNORE
        elif self.node.recorders and discard is Treatment.FILE:
            discard = Treatment.ASK
        return replace(
            node_map,
            writable=(
                node_map.writable
                and self.writable
                and not self._detect_zeroes
                and not self.node.write_threshold
                and not self.node.recorders
            ),
            flush=flush,
            discard=discard,
        )

    async def truncate(self, size: int, mode: PreallocMode = PreallocMode.OFF) -> None:
        """Change the node's length to `size` bytes, and notify all users.

        With a `mode`, the new range is preallocated.
        """
        if size < 0:
            raise os_error(errno.EINVAL)
        if size > MAX_SIZE:
            raise OSError(
                errno.EFBIG,
                f"Required too big image size, it must be not greater than {MAX_SIZE}",
            )
        if not self.perm & Perm.RESIZE:
            raise os_error(errno.EACCES)
        if self.node.read_only:
            raise OSError(errno.EACCES, "Image is read-only")
        old_size = self.node.size
        try:
            if mode is PreallocMode.OFF:
                await self.node.truncate(size)
            else:
                await self.node.grow(size, mode)
        finally:
            if self.node.size != old_size:
                notify_resize(self.node)


async def flush_node(node: BlockNode) -> None:
    """Flush a node, as far as its cache options allow."""
    node.debug_event("flush_to_os")
    generation = node.write_generation
    if node.options.cache.no_flush or (
        node.counts_writes and generation == node.flushed_generation
    ):
        await node.flush_children()
        return
    node.debug_event("flush_to_disk")
    await node.flush()
    node.flushed_generation = generation


def notify_resize(node: BlockNode) -> None:
    """Notify the node's bitmaps and all users above that the node's size has changed."""
    for bitmap in node.bitmaps:
        bitmap.resize(node.size)
    for edge in list(node.parents):
        if isinstance(edge.parent, BlockNode):
            notify_resize(edge.parent)
        else:
            edge.parent.child_resized()
