# SPDX-License-Identifier: Apache-2.0
"""The node contract: what a driver of the block layer implements.

A `BlockNode` is one vertex of the block graph: a protocol driver at the bottom (`file`), a format
or filter above it (`raw`). Its I/O methods are coroutines on byte ranges which the layer above
(`vhostblk.block.graph.edge`) has already checked and shaped: inside [0, size), aligned to
`limits.request_alignment`, no longer than `limits.max_transfer`, refused on read-only nodes. A
driver therefore does no checking of its own. It raises OSError with a fitting errno when I/O fails.
Two kinds of requests may reach past the end: requests rounded up to the alignment if the size is no
multiple of it (the part past the end reads as zeroes), and writes of a parent with the RESIZE
permission to a node that grows by writing (`grows_by_writing`).

Coroutines may be run by `vhostblk.block.io.completion.drive` (see there) or in asyncio tasks. All
run on the event loop's thread; a driver never blocks it.
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


#: What each request of a burst has failed with, None where it succeeded; empty: all have succeeded.
Failures = list[BaseException | None]


class BlockLimits(msgspec.Struct, frozen=True):
    """What a node asks of its requests; lengths in bytes."""

    #: Offsets and lengths are multiples of this power of two.
    request_alignment: int = 1
    #: Addresses of memory segments are multiples of this.
    memory_alignment: int = 1
    #: Longest read or write; 0: no limit.
    max_transfer: int = 0
    #: Most segments in one request.
    max_iov: int = 1024
    #: Granularity at which discards are useful; 0: the request alignment.
    discard_granularity: int = 0
    #: Longest discard and write-zeroes request; 0: no limit.
    max_discard: int = 0
    max_write_zeroes: int = 0
    #: Discards and write-zeroes requests are cut at multiples of these (which the request alignment
    #: divides), so that all but the ends is whole units; 0: the request alignment.
    discard_alignment: int = 0
    write_zeroes_alignment: int = 0
    #: Preferred request size, for the guest's topology; 0: unknown.
    optimal_transfer: int = 0


class BlockStatus(IntFlag):
    """What `block_status` says of a range (QEMU's BDRV_BLOCK_*)."""

    NONE = 0
    DATA = 1
    ZERO = 2
    OFFSET_VALID = 4
    RAW = 8
    ALLOCATED = 16
    EOF = 32


class Extent(msgspec.Struct, frozen=True):
    """A run of bytes with one status; `offset` is where in `node` it lies, if OFFSET_VALID."""

    length: int
    status: BlockStatus
    offset: int = 0
    node: BlockNode | None = None


class BlockNode(ABC):
    """One node of the block graph. See the module's text for who checks what."""

    #: The QAPI name (`BlockdevDriver`).
    driver: ClassVar[str]

    #: Shows the data of its child "file"; has none of its own.
    is_filter: ClassVar[bool] = False

    #: The child whose data is the node's, in filters and in formats that have a file.
    primary_role: ClassVar[str] = FILE

    #: Queries show the file name of the child as the node's.
    named_by_child: ClassVar[bool] = False
    #: Queries show details of the child's image where the node has none.
    described_by_child: ClassVar[bool] = True

    #: Whether `pwritev_burst` is worth asking.
    takes_bursts: ClassVar[bool] = False

    #: Whether the driver supports `blockdev-reopen`.
    reopens: ClassVar[bool] = False
    #: Members of the options that `blockdev-reopen` may change, besides those common to all.
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    #: Those among them that do not go back to their default when they are left out.
    kept_options: ClassVar[frozenset[str]] = frozenset()
    #: Those of them that select which part of the children's data the node shows.
    data_options: ClassVar[frozenset[str]] = frozenset()
    #: Roles whose child `blockdev-reopen` may replace by another node. A child "backing" may be
    #: added and removed, too, if the driver supports one.
    exchangeable_roles: frozenset[str] = frozenset({FILE})
    #: Roles of children whose data the node keeps something of in memory. See `load_other_data`.
    remembered_roles: frozenset[str] = frozenset()

    #: Modules that I/O needs and opening doesn't: who has time imports them before.
    late_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, node_name: str, options: Any) -> None:
        self.node_name = node_name
        #: The schema's struct that the node was opened with.
        self.options = options
        #: Edges to the nodes below, by role name ("file", "backing").
        self.children: dict[str, Edge] = {}
        #: Edges from the users above.
        self.parents: list[Edge] = []
        self.read_only = False
        #: Inactive nodes have left their image to another process; kept by the graph.
        self.active: bool = options.active is not False
        #: The node in whose options this one was defined, and what was said there.
        self.defined_in: BlockNode | None = None
        self.given_options = options
        #: Writes past this offset are announced, once; 0: none. See `Graph.set_write_threshold`.
        self.write_threshold = 0
        self.on_threshold: Callable[[BlockNode, int], object] | None = None
        self.limits = BlockLimits()
        #: Flags that `pwritev` and `pwrite_zeroes` honour; FUA is otherwise emulated by a flush.
        self.native_flags = WriteFlags.NONE
        #: What `apply_permissions` was last called with; kept by the graph.
        self.granted = (Perm.NONE, Perm.ALL)
        #: Former values of `granted` that stay in force while a change may be undone; see `Pins`.
        self.pinned: list[tuple[Perm, Perm]] = []
        #: Writes in flight, where unaligned ones need read-modify-write (see `block.shaping`).
        self.write_tracker: WriteTracker | None = None
        #: Takes debug events: those of the layer above about this node, and those of a parent whose
        #: primary child it is. Set by drivers that act on them (`blkdebug`).
        self.take_debug_event: Callable[[str], None] | None = None
        #: Dirty bitmaps, the newest first, and those of them that record; see `block.node_bitmaps`.
        self.bitmaps: list[DirtyBitmap] = []
        self.recorders: tuple[DirtyBitmap, ...] = ()
        #: How many writes and discards there have been, and at the last flush; see `counts_writes`.
        self.write_generation = 0
        self.flushed_generation = 0

    @classmethod
    @abstractmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        """Open from a schema struct; children through `graph.open_child()`.

        Raises BlockError, and then leaves nothing open.
        """

    @property
    @abstractmethod
    def size(self) -> int:
        """The node's length in bytes, now."""

    @property
    def exact_size(self) -> int:
        """How many of the `size` bytes have storage: less, where the end of a file was rounded up.

        Exports refuse what does not come to whole blocks; graphs may use it, as in QEMU.
        """
        return self.size

    @property
    def cluster_size(self) -> int:
        """How many bytes the image allocates at a time; 0: unknown, or it doesn't allocate."""
        return 0

    @property
    def subcluster_size(self) -> int:
        """How many bytes of a cluster it says at a time whether they are allocated."""
        return self.cluster_size

    @property
    def description(self) -> str:
        """What messages call this node as the user of another."""
        return f"node '{self.node_name}'"

    @property
    def filename(self) -> str:
        """What messages call the image; the file's name where there is one."""
        child = self.primary_child
        return child.node.filename if child is not None else f"{self.driver}:"

    @property
    def primary_child(self) -> Edge | None:
        """The edge to the child whose data is the node's, where there is one."""
        return self.children.get(self.primary_role)

    def debug_event(self, event: str) -> None:
        """Tell the primary child what is about to be done (a `BlkdebugEvent`, "l2_load").

        It makes a difference only where that child is a `blkdebug`, and costs next to nothing else.
        """
        child = self.children.get(self.primary_role)
        if child is not None and child.node.take_debug_event is not None:
            child.node.take_debug_event(event)

    @property
    def counts_writes(self) -> bool:
        """Tell whether writes are counted, so that a flush of nothing stays away from the driver.

        So it is where flushes are watched; elsewhere that isn't worth its cost on the fast path.
        """
        child = self.primary_child
        return self.take_debug_event is not None or (
            child is not None and child.node.take_debug_event is not None
        )

    def record_change(self, offset: int, length: int) -> None:
        """Note in the bitmaps that record that bytes have changed, or may have."""
        for bitmap in self.recorders:
            if offset + length > bitmap.size:
                bitmap.resize(self.size)
            bitmap.mark(offset, length)

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Translate what this node's parents take and share into what it does with a child."""
        return perm, shared

    def apply_permissions(self, perm: Perm, shared: Perm) -> None:  # noqa: B027
        """Take what the node's parents now need from outside (image locks, a writable descriptor).

        `perm` and `shared` accumulate all parents; `shared` is what they share with other
        processes. All or nothing: raises BlockError and changes nothing where it can't be had.
        Asking for less than before never fails.
        """

    def permissions_applied(self) -> None:  # noqa: B027
        """Let go of what `granted` does not need; all nodes have got what they asked for.

        Never fails.
        """

    @abstractmethod
    async def preadv(self, offset: int, iov: IoVec) -> None:
        """Fill all of `iov` from `offset`."""

    async def pread_segments(self, offsets: list[int], iov: IoVec) -> Failures:
        """Fill each segment of `iov` from an offset of its own; return what each failed with."""
        return await gather(
            [self.preadv(offset, iov.segment(index)) for index, offset in enumerate(offsets)]
        )

    def read_early(self, offset: int, length: int) -> bytes | None:
        """Read bytes, as far as the file goes, while numpy is not loaded; None: it has to be.

        No front-end is there yet, so it may block. Raises OSError.
        """
        return None

    def shows_child(self, options: Any) -> bool:
        """Return whether the node has, with these options, the data of its primary child."""
        return self.is_filter

    @property
    def grows_by_writing(self) -> bool:
        """Whether a write past the end makes the node longer. If not, it gets no such write.

        A node that keeps its size in memory updates it in `written_past_end`.
        """
        return False

    def written_past_end(self, size: int) -> None:  # noqa: B027
        """Update the node's size: a write up to `size`, a multiple of a sector, has succeeded."""

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        """Write all of `iov` at `offset`; honours FUA itself or through the layer above."""
        raise os_error(errno.ENOTSUP)

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        """Do writes all at once, where that is cheaper; None: it isn't, and nothing has begun."""
        return None

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        """Make a range read as zeroes. ENOTSUP makes the layer above write zeroes instead."""
        raise os_error(errno.ENOTSUP)

    async def reserve(self, offset: int, length: int) -> None:  # noqa: B027
        """Allocate storage for a range without changing it, so that writes there can't fail for it.

        Raises OSError if there is no room. A node that can't do this does nothing.
        """

    async def pdiscard(self, offset: int, length: int) -> None:
        """Forget a range; its content is undefined afterwards. A hint: ENOTSUP is ignored above."""
        raise os_error(errno.ENOTSUP)

    def capability(self, kind: type) -> Any:
        """Return the object that gives the node the capability `kind`; None: it has none.

        `kind` is a class of abstract methods that only some nodes have, as `zones.Zoned` is. The
        modules of these classes have functions that call this. A node that shows a child's bytes
        may pass the child's capabilities on: see `block.graph.passing`.
        """
        return self if isinstance(self, kind) else None

    async def flush(self) -> None:  # noqa: B027
        """Put every completed write on stable storage."""

    async def block_status(self, offset: int, length: int) -> Extent:
        """Describe a run at `offset`, of at most `length` bytes."""
        return Extent(length, BlockStatus.DATA | BlockStatus.ALLOCATED)

    def known_zero(self, offset: int, length: int) -> bool:
        """Tell at once whether a range reads as zeroes; False: it is not known without waiting."""
        return False

    def known_zeroes(self, offsets: list[int], length: int) -> list[bool]:
        """Tell the same of several ranges of one length."""
        return [self.known_zero(offset, length) for offset in offsets]

    def extent_map(self) -> ExtentMap | None:
        """Say what may be done with the node's storage without asking; None: nothing."""
        return None

    @property
    def grows_with_zeroes(self) -> bool:
        """Tell whether what `truncate` adds reads as zeroes."""
        return False

    async def truncate(self, size: int) -> None:
        """Change the length to `size` bytes. The text of the OSError is shown to the user."""
        raise OSError(errno.ENOTSUP, "Image format driver does not support resize")

    async def grow(self, size: int, mode: PreallocMode) -> None:
        """Make the node longer, and give what is added storage; `mode` is not OFF.

        The text of the OSError is shown to the user, and then the length is what it was.
        """
        if type(self).truncate is BlockNode.truncate:
            await self.truncate(size)  # it raises: the node can't be resized at all
        raise OSError(errno.ENOTSUP, f"Unsupported preallocation mode '{mode.value}'")

    # Reopening (`block.reopen`): prepare, take options, check; then commit or abort. No request is
    # in flight and nothing of it may suspend.

    def prepare_reopen(self, options: Any) -> None:  # noqa: B027
        """Do what can fail of going over to other options; nothing else changes yet.

        Raises BlockError, and then leaves nothing behind; else a commit or an abort follows.
        """

    def take_options(self, options: Any) -> None:
        """Go by other options, as far as that is done in memory; also to go back. Never fails."""
        self.options = options
        self.read_only = options.read_only

    def child_changed(self, role: str) -> None:  # noqa: B027
        """React to another child, or no child, in `role`; also called to undo this. Never fails.

        The node is drained. If there was a child before, the edge is the same object as before.
        """

    def check_children(self) -> None:  # noqa: B027
        """Raise BlockError where the options don't go with the children."""

    def commit_reopen(self) -> None:  # noqa: B027
        """Make what was prepared final. Never fails."""

    def abort_reopen(self) -> None:  # noqa: B027
        """Undo what was prepared. Never fails."""

    # Other data below: a child or a node further down was replaced, or shows another part of its
    # data. All nodes are drained. Changes in memory were written to the former data before
    # (`give_up_writing`). Nodes load what they need of the new data, children before parents. When
    # all have loaded it, all keep it, and may then write. If one fails, all drop it again.

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        """Read again, and use, what the node keeps of the data of its children `roles`.

        Raises BlockError if the node can't work with other data. `drop_other_data` follows then,
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
        """Use what the node had before `load_other_data`. Never fails."""

    async def start_writing(self) -> None:  # noqa: B027
        """Prepare the image that was loaded for writes; raises BlockError."""

    # Drained sections of whoever lies above; they may be nested.

    def drained_begin(self) -> None:  # noqa: B027
        """Hold no request up from now on: somebody waits until those in flight are done."""

    def drained_end(self) -> None:  # noqa: B027
        """Undo one `drained_begin()`."""

    async def give_up_writing(self) -> None:  # noqa: B027
        """Put the image in order: the node is about to become read-only or inactive.

        Also called when the data below it is about to be replaced. No request is in flight and all
        is flushed. Raises OSError if this fails.
        """

    async def resume_writing(self) -> None:  # noqa: B027
        """Undo `give_up_writing()`: the node stays writable after all."""

    async def release_children(self) -> None:  # noqa: B027
        """Give up the permissions on children that the node keeps for itself, not for its users.

        A user is about to detach from the node and to use the children directly. All is drained.
        Raises OSError if this fails.
        """

    async def settle(self) -> None:  # noqa: B027
        """Wait until what the node does of its own accord is done: requests that no user waits for.

        Called while no user starts requests, and before the node is closed.
        """

    def refresh_limits(self) -> None:  # noqa: B027
        """Work out again what depends on the children and their limits."""

    def make_guard(self) -> LockGuard | None:
        """Keep the image locked, as it is now, beyond this node's life; None: it isn't locked.

        Raises OSError or BlockError where the image couldn't be opened again.
        """
        return None

    def refresh_image(self) -> None:  # noqa: B027
        """Look at the image again, which another process may have changed; raises BlockError."""

    async def write_back(self) -> None:  # noqa: B027
        """Hand what is cached in memory to the children, which need not put it on storage yet.

        For users who never flush; a flush does it, too.
        """

    async def flush_children(self) -> None:
        """Write back and flush the children: the flush of a node that has nothing else to flush."""
        await self.write_back()
        for child in self.children.values():
            await child.flush()

    async def reload_image(self) -> None:  # noqa: B027
        """Read again what the node knows of its image; drained, once it may have changed.

        That is after activation, and when the node has become writable. Raises BlockError.
        """

    # For queries.

    @property
    def allocated_size(self) -> int | None:
        """How many bytes the image takes up; None: unknown."""
        return None

    @property
    def image_details(self) -> dict[str, Any]:
        """What the node has to say in queries: members of `ImageInfo`, by attribute name."""
        return {}

    @property
    def strong_options(self) -> dict[str, Any]:
        """The options, but for children, that say what the node's data is, by wire name."""
        return {}

    async def close(self) -> None:  # noqa: B027
        """Release everything; called once, with no request in flight and no parent left."""
