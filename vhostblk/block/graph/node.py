# SPDX-License-Identifier: Apache-2.0
"""The node contract: the interface of block drivers.

A `BlockNode` is one node of the block graph: a protocol driver at the bottom (`file`), a format or
filter above it (`raw`). Its I/O methods are coroutines on byte ranges. The edge
(`vhostblk.block.graph.edge`) has already checked and shaped the requests: they are inside [0,
size), aligned to `limits.request_alignment`, and not longer than `limits.max_transfer`; a read-only
node gets no writes. So a driver does no checks of its own. It raises OSError with a suitable errno
if I/O fails. Two kinds of requests may extend past the end: requests rounded up to the alignment if
the size is no multiple of it (the part past the end reads as zeroes), and writes of a parent with
the RESIZE permission to a node that grows by writing (`grows_by_writing`).

Coroutines are run by `vhostblk.block.io.completion.drive` (see there) or in asyncio tasks, all on
the event loop's thread. A driver never blocks the thread.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from enum import IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.inherit import FILE
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import gather
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.locking import LockGuard
    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.io.tracker import WriteTracker
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.schema.common import PreallocMode


#: The error of each request of a burst, None if it succeeded. Empty: all succeeded.
Failures = list[BaseException | None]


class BlockLimits(msgspec.Struct, frozen=True):
    """Limits of the requests that a node takes; lengths in bytes."""

    #: Offsets and lengths are multiples of this power of two.
    request_alignment: int = 1
    #: Addresses of memory segments are multiples of this.
    memory_alignment: int = 1
    #: Maximum length of a read or write; 0: no limit.
    max_transfer: int = 0
    #: Maximum number of segments in a request.
    max_iov: int = 1024
    #: Smallest unit of useful discards; 0: the request alignment.
    discard_granularity: int = 0
    #: Maximum length of a discard or write-zeroes request; 0: no limit.
    max_discard: int = 0
    max_write_zeroes: int = 0
    #: Discard and write-zeroes requests are split at multiples of this (a multiple of the request
    #: alignment), so that all parts but the first and the last are whole units. 0: the request
    #: alignment.
    discard_alignment: int = 0
    write_zeroes_alignment: int = 0
    #: Preferred request size, for the guest's topology; 0: unknown.
    optimal_transfer: int = 0


class BlockStatus(IntFlag):
    """The status of a range (QEMU's BDRV_BLOCK_*)."""

    NONE = 0
    DATA = 1
    ZERO = 2
    OFFSET_VALID = 4
    RAW = 8
    ALLOCATED = 16
    EOF = 32


class Extent(msgspec.Struct, frozen=True):
    """A run of bytes with one status; `offset` is its offset in `node`, if OFFSET_VALID."""

    length: int
    status: BlockStatus
    offset: int = 0
    node: BlockNode | None = None


class BlockNode(ABC):
    """One node of the block graph. The module's text says what the edge checks."""

    #: The QAPI name (`BlockdevDriver`).
    driver: ClassVar[str]

    #: The node shows the data of its child "file", and has none of its own.
    is_filter: ClassVar[bool] = False

    #: The role of the primary child, whose data the node shows: filters, and formats with a file.
    primary_role: ClassVar[str] = FILE

    #: Queries show the child's file name as the node's.
    named_by_child: ClassVar[bool] = False
    #: Queries show the child's image details if the node has none.
    described_by_child: ClassVar[bool] = True

    #: Whether `pwritev_burst` is implemented.
    takes_bursts: ClassVar[bool] = False

    #: Whether the driver supports `blockdev-reopen`.
    reopens: ClassVar[bool] = False
    #: Driver options that `blockdev-reopen` may change, in addition to the common ones.
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    #: Those of them that keep their value when they are omitted, instead of the default.
    kept_options: ClassVar[frozenset[str]] = frozenset()
    #: Those of them that select the part of the children's data that the node shows.
    data_options: ClassVar[frozenset[str]] = frozenset()
    #: Roles whose child `blockdev-reopen` may replace. A child "backing" may also be added and
    #: removed, if the driver supports one.
    exchangeable_roles: frozenset[str] = frozenset({FILE})
    #: Roles of children of whose data the node caches something. See `load_other_data`.
    remembered_roles: frozenset[str] = frozenset()

    #: Modules that I/O needs and opening doesn't. They can be imported in advance.
    late_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, node_name: str, options: Any) -> None:
        self.node_name = node_name
        #: The schema's struct with the node's options.
        self.options = options
        #: Edges to the children, by role ("file", "backing").
        self.children: dict[str, Edge] = {}
        #: Edges from the parents.
        self.parents: list[Edge] = []
        self.read_only = False
        #: An inactive node has left its image to another process. Set by the graph.
        self.active: bool = options.active is not False
        #: The node in whose options this one was defined, and its definition there.
        self.defined_in: BlockNode | None = None
        self.given_options = options
        #: The first write past this offset sends an event; 0: none. See
        #: `Graph.set_write_threshold`.
        self.write_threshold = 0
        self.on_threshold: Callable[[BlockNode, int], object] | None = None
        self.limits = BlockLimits()
        #: Flags that `pwritev` and `pwrite_zeroes` support; the edge emulates FUA with a flush.
        self.native_flags = WriteFlags.NONE
        #: The last arguments of `apply_permissions`; set by the graph.
        self.granted = (Perm.NONE, Perm.ALL)
        #: Former values of `granted` that stay in force while a change may be undone. See `Pins`.
        self.pinned: list[tuple[Perm, Perm]] = []
        #: Writes in flight, if unaligned ones need read-modify-write (see `block.io.shaping`).
        self.write_tracker: WriteTracker | None = None
        #: Receives debug events: those of the edge for this node, and those of a parent whose
        #: primary child it is. Set by drivers that handle them (`blkdebug`).
        self.take_debug_event: Callable[[str], None] | None = None
        #: Dirty bitmaps, the newest first, and those that record; see `block.bitmaps.node_bitmaps`.
        self.bitmaps: list[DirtyBitmap] = []
        self.recorders: tuple[DirtyBitmap, ...] = ()
        #: Number of writes and discards, now and at the last flush; see `counts_writes`.
        self.write_generation = 0
        self.flushed_generation = 0

    @classmethod
    @abstractmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        """Open a node from a schema struct, and its children through `graph.open_child()`.

        On BlockError nothing stays open.
        """

    @property
    @abstractmethod
    def size(self) -> int:
        """The node's length in bytes, now."""

    @property
    def exact_size(self) -> int:
        """The number of `size` bytes with storage: less if the end of a file was rounded up.

        Exports refuse a size that is no multiple of the block size; nodes accept it, as in QEMU.
        """
        return self.size

    @property
    def cluster_size(self) -> int:
        """The image's cluster size in bytes; 0: unknown, or the image has no clusters."""
        return 0

    @property
    def subcluster_size(self) -> int:
        """The image's unit of allocation in bytes: smaller than a cluster if it has subclusters."""
        return self.cluster_size

    @property
    def description(self) -> str:
        """The name of this node, as a parent, in messages."""
        return f"node '{self.node_name}'"

    @property
    def filename(self) -> str:
        """The name of the image in messages: the file's name if there is one."""
        child = self.primary_child
        return child.node.filename if child is not None else f"{self.driver}:"

    @property
    def primary_child(self) -> Edge | None:
        """The edge to the primary child, whose data the node shows, if there is one."""
        return self.children.get(self.primary_role)

    def debug_event(self, event: str) -> None:
        """Send a debug event (a `BlkdebugEvent`, "l2_load") to the primary child.

        It has an effect only if that child is a `blkdebug` node, and costs very little otherwise.
        """
        child = self.children.get(self.primary_role)
        if child is not None and child.node.take_debug_event is not None:
            child.node.take_debug_event(event)

    @property
    def counts_writes(self) -> bool:
        """Whether writes are counted, so that a flush with nothing to flush can be skipped.

        This is so if flushes are observed. Otherwise the count isn't worth its cost on the fast
        path.
        """
        child = self.primary_child
        return self.take_debug_event is not None or (
            child is not None and child.node.take_debug_event is not None
        )

    def record_change(self, offset: int, length: int) -> None:
        """Mark bytes dirty in the recording bitmaps, because they may have changed."""
        for bitmap in self.recorders:
            if offset + length > bitmap.size:
                bitmap.resize(self.size)
            bitmap.mark(offset, length)

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Return what the node takes and shares on a child, given the same of its parents."""
        return perm, shared

    def apply_permissions(self, perm: Perm, shared: Perm) -> None:  # noqa: B027
        """Acquire what the node's parents now need outside (image locks, a writable descriptor).

        `perm` and `shared` accumulate all parents; `shared` is what they share with other
        processes. On BlockError nothing has changed. A request for less than before never fails.
        """

    def permissions_applied(self) -> None:  # noqa: B027
        """Release what `granted` doesn't need; all nodes have their permissions.

        Never fails.
        """

    @abstractmethod
    async def preadv(self, offset: int, iov: IoVec) -> None:
        """Fill all of `iov` from `offset`."""

    async def pread_segments(self, offsets: list[int], iov: IoVec) -> Failures:
        """Fill each segment of `iov` from its own offset; return the errors of the segments."""
        return await gather(
            [self.preadv(offset, iov.segment(index)) for index, offset in enumerate(offsets)]
        )

    def read_early(self, offset: int, length: int) -> bytes | None:
        """Read bytes, up to the end of the file, without numpy; None: not possible.

        It may block, as no front-end is connected yet. Raises OSError.
        """
        return None

    def shows_child(self, options: Any) -> bool:
        """Return whether the node, with these options, shows the data of its primary child."""
        return self.is_filter

    @property
    def grows_by_writing(self) -> bool:
        """Whether a write past the end makes the node longer. If not, it gets no such write.

        A node that keeps its size in memory updates it in `written_past_end`.
        """
        return False

    def written_past_end(self, size: int) -> None:  # noqa: B027
        """Update the node's size after a write up to `size`, a multiple of the sector size."""

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        """Write all of `iov` at `offset`; supports FUA itself or through the edge."""
        raise os_error(errno.ENOTSUP)

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        """Write several requests at once; None: not cheaper, and nothing has begun."""
        return None

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        """Make a range read as zeroes. On ENOTSUP the edge writes zeroes instead."""
        raise os_error(errno.ENOTSUP)

    async def reserve(self, offset: int, length: int) -> None:  # noqa: B027
        """Allocate storage for a range without changing its data, so that writes there have room.

        Raises OSError if there is no room. By default it does nothing.
        """

    async def pdiscard(self, offset: int, length: int) -> None:
        """Discard a range; its content becomes undefined. A hint: the edge ignores ENOTSUP."""
        raise os_error(errno.ENOTSUP)

    def capability(self, kind: type) -> Any:
        """Return the object that implements the capability `kind` for the node, or None.

        `kind` is an abstract class for a feature that only some nodes have, such as `zones.Zoned`.
        Its module has functions that call this method. A node that shows a child's bytes may pass
        on the child's capabilities: see `block.graph.passing`.
        """
        return self if isinstance(self, kind) else None

    async def flush(self) -> None:  # noqa: B027
        """Put every completed write on stable storage."""

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of a run at `offset`, of at most `length` bytes."""
        return Extent(length, BlockStatus.DATA | BlockStatus.ALLOCATED)

    def known_zero(self, offset: int, length: int) -> bool:
        """Return whether a range is known to read as zeroes; False: unknown without I/O."""
        return False

    def known_zeroes(self, offsets: list[int], length: int) -> list[bool]:
        """Return for each range of one length whether it is known to read as zeroes."""
        return [self.known_zero(offset, length) for offset in offsets]

    def extent_map(self) -> ExtentMap | None:
        """Return the map for direct access to the node's storage; None: no direct access."""
        return None

    @property
    def grows_with_zeroes(self) -> bool:
        """Whether the range that `truncate` adds reads as zeroes."""
        return False

    async def truncate(self, size: int) -> None:
        """Change the length to `size` bytes. The text of an OSError is shown to the user."""
        raise OSError(errno.ENOTSUP, "Image format driver does not support resize")

    async def grow(self, size: int, mode: PreallocMode) -> None:
        """Make the node longer, and preallocate the new range; `mode` is not OFF.

        The text of an OSError is shown to the user. The length is then unchanged.
        """
        if type(self).truncate is BlockNode.truncate:
            await self.truncate(size)  # raises an error: the node can't be resized
        raise OSError(errno.ENOTSUP, f"Unsupported preallocation mode '{mode.value}'")

    # Reopening (`block.graph.reopen`): prepare, take options, check; then commit or abort. No
    # request is in flight, and these methods don't await.

    def prepare_reopen(self, options: Any) -> None:  # noqa: B027
        """Do the part of changing options that can fail, without an effect yet.

        On BlockError nothing is left behind. Otherwise a commit or an abort follows.
        """

    def take_options(self, options: Any) -> None:
        """Replace the options in memory; also called to undo this. Never fails."""
        self.options = options
        self.read_only = options.read_only

    def child_changed(self, role: str) -> None:  # noqa: B027
        """Handle a new child, or no child, in `role`; also called to undo this. Never fails.

        The node is drained. If there was a child before, the edge is the same object as before.
        """

    def check_children(self) -> None:  # noqa: B027
        """Raise BlockError if the options conflict with the children."""

    def commit_reopen(self) -> None:  # noqa: B027
        """Make what was prepared final. Never fails."""

    def abort_reopen(self) -> None:  # noqa: B027
        """Undo what was prepared. Never fails."""

    # Other data below: a child or a node further down was replaced, or shows another part of its
    # data. All nodes are drained. Changes in memory were written to the former data before
    # (`give_up_writing`). Nodes load what they need from the new data, children before parents.
    # When all have loaded it, all keep it, and may then write. If one fails, all drop it.

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        """Reload the state that the node derives from the data of its children `roles`, and use it.

        Raises BlockError if the node can't work with the new data. `drop_other_data` follows then,
        too.
        """
        for role in sorted(roles & self.remembered_roles):
            raise BlockError(
                f"Cannot replace the data of the {role} child of node '{self.node_name}': "
                f"'{self.driver}' relies on it"
            )

    def keep_other_data(self) -> None:  # noqa: B027
        """Make what was loaded final. Never fails."""

    def drop_other_data(self) -> None:  # noqa: B027
        """Use the state from before `load_other_data`. Never fails."""

    async def start_writing(self) -> None:  # noqa: B027
        """Prepare the loaded image for writes; raises BlockError."""

    # Drained sections of ancestors; they may be nested.

    def drained_begin(self) -> None:  # noqa: B027
        """Delay no requests from now on: a drained section waits for those in flight."""

    def drained_end(self) -> None:  # noqa: B027
        """Undo one `drained_begin()`."""

    async def give_up_writing(self) -> None:  # noqa: B027
        """Write back the image's state: the node is about to become read-only or inactive.

        Also called when the data below it is about to be replaced. No request is in flight and all
        is flushed. Raises OSError if this fails.
        """

    async def resume_writing(self) -> None:  # noqa: B027
        """Undo `give_up_writing()`: the node stays writable after all."""

    async def release_children(self) -> None:  # noqa: B027
        """Release the permissions on children that the node holds for itself, not for its users.

        A user is about to detach from the node and to use the children directly. All is drained.
        Raises OSError if this fails.
        """

    async def settle(self) -> None:  # noqa: B027
        """Wait until the node's own requests, which no user waits for, have completed.

        Called while users are quiesced, and before the node is closed.
        """

    def refresh_limits(self) -> None:  # noqa: B027
        """Recompute what depends on the children and their limits."""

    def make_guard(self) -> LockGuard | None:
        """Return a guard that keeps the image locked after this node closes; None: not locked.

        Raises OSError or BlockError if the image can't be opened again.
        """
        return None

    def refresh_image(self) -> None:  # noqa: B027
        """Re-examine the image, which another process may have changed; raises BlockError."""

    async def write_back(self) -> None:  # noqa: B027
        """Write cached state to the children, without a flush.

        For users that never flush; a flush does this, too.
        """

    async def flush_children(self) -> None:
        """Write back, and flush the children: `flush` of a node without other state."""
        await self.write_back()
        for child in self.children.values():
            await child.flush()

    async def reload_image(self) -> None:  # noqa: B027
        """Reload the node's state from its image, which may have changed. The node is drained.

        Called after activation, and when the node has become writable. Raises BlockError.
        """

    # For queries.

    @property
    def allocated_size(self) -> int | None:
        """The storage that the image takes up, in bytes; None: unknown."""
        return None

    @property
    def image_details(self) -> dict[str, Any]:
        """The node's details for queries: members of `ImageInfo`, by attribute name."""
        return {}

    @property
    def strong_options(self) -> dict[str, Any]:
        """The options, except children, that determine the node's data, by wire name."""
        return {}

    async def close(self) -> None:  # noqa: B027
        """Release everything; called once, with no request in flight and no parent left."""
