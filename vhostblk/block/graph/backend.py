# SPDX-License-Identifier: Apache-2.0
"""`BlockBackend`: the access of an export, a job or a command to a node.

A backend is the parent of a root edge. It holds permissions, counts requests in flight, and can be
drained, so that the graph can change between requests. It adds nothing to the hot path: while it is
attached, `preadv` and `pwritev` *are* those of the edge. A user counts its requests with `begin(n)`
and `end(n)`, or a whole burst at once. It starts none while `quiesced`; a listener can be
registered with `add_drain_listener`. Coroutines can use `async with backend.request():` instead,
which waits while the backend is quiesced.
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol

from vhostblk.block.graph.drain import with_descendants
from vhostblk.block.graph.permission_update import check_conflicts, update_permissions
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error
from vhostblk.schema.common import PreallocMode
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockLimits, BlockNode, Extent, Failures
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import Zone, ZoneOp
    from vhostblk.engine.extents import ExtentMap
    from vhostblk.schema.block import IoOperationType


class DrainListener(Protocol):
    """A source of requests that can be asked to stop."""

    def drained_begin(self) -> None:
        """Start no new requests."""

    def drained_end(self) -> None:
        """Start requests again, with those that have arrived meanwhile first."""


class BlockBackend:
    """One user of a node.

    `shared_outside` are the permissions shared with other processes, by means of image locks. By
    default, a writer doesn't share WRITE and RESIZE.
    """

    def __init__(
        self,
        name: str,
        perm: Perm,
        shared: Perm = Perm.ALL,
        shared_outside: Perm | None = None,
    ) -> None:
        self.name = name
        self.perm = perm
        self.shared = shared
        if shared_outside is None:
            shared_outside = Perm.ALL
            if perm & Perm.WRITE:
                shared_outside &= ~(Perm.WRITE | Perm.RESIZE)
        self.shared_outside = shared_outside & shared
        self.in_flight = 0
        #: Offset and length of every request are multiples of this. Set before attaching.
        self.request_alignment = 1
        #: Writes past the end make the node longer. Needs the permission RESIZE.
        self.writes_past_end = False
        #: The node may be inactive. The user does no I/O that needs an active node meanwhile.
        self.allow_inactive = False
        self._edge: Edge | None = None
        self._graph: Graph | None = None
        self._known_size = 0
        self._write_cache = True
        self._quiesce_depth = 0
        #: Ends the drained section that `_hurry()` began in the nodes below.
        self._end_hurry: Callable[[], None] | None = None
        self._idle: list[Completion[None]] = []
        self._resumed: list[Completion[None]] = []
        self._drain_listeners: list[DrainListener] = []
        self._resize_callbacks: list[Callable[[], object]] = []
        self._bind()

    @property
    def description(self) -> str:
        """The name of this user in messages."""
        return f"block device '{self.name}'" if self.name else "an unnamed block device"

    # Attaching.

    def attach(self, graph: Graph, node: BlockNode) -> None:
        """Start to use a node; raises BlockError if its other users conflict."""
        assert self._edge is None, "attached twice"
        self._edge = graph.attach(self, node)
        self._graph = graph
        self._known_size = node.size
        self._bind()
        if trace.blk_root_attach.enabled:
            trace.blk_root_attach(self.name, node.node_name)

    def exclude_others(self) -> None:
        """Exclude all other users of the node, in this process and in others.

        Raises BlockError if there is one; the caller then detaches.
        """
        edge = self.edge
        self.shared = self.shared_outside = edge.shared = edge.shared_outside = Perm.NONE
        check_conflicts(edge)
        update_permissions([edge.node])

    async def detach(self) -> None:
        """Stop using the node, once all requests have finished."""
        if self._edge is None or self._graph is None:
            return
        await self.drain()
        edge, self._edge = self._edge, None
        self._bind()
        if trace.blk_root_detach.enabled:
            trace.blk_root_detach(self.name, edge.node.node_name)
        await self._graph.detach(edge)

    def _bind(self) -> None:
        """Set the I/O methods to those of the edge."""
        edge = self._edge
        if edge is None:
            self.preadv: Callable[[int, IoVec], Coroutine[object, object, None]] = _no_medium
            self.pwritev: Callable[..., Coroutine[object, object, None]] = _no_medium
            return
        self.preadv = edge.preadv
        self.pwritev = edge.pwritev if self._write_cache else self._pwritev_through

    @property
    def edge(self) -> Edge:
        """The edge to the node; raises OSError(ENOMEDIUM) if there is none."""
        if self._edge is None:
            raise os_error(errno.ENOMEDIUM)
        return self._edge

    @property
    def node(self) -> BlockNode:
        """The node in use."""
        return self.edge.node

    @property
    def size(self) -> int:
        """The node's length in bytes, now."""
        return self.edge.node.size

    @property
    def limits(self) -> BlockLimits:
        """The node's limits. Requests may exceed them: the edge splits and aligns requests."""
        return self.edge.node.limits

    @property
    def writable(self) -> bool:
        """Whether this user may write."""
        return self._edge is not None and self._edge.writable

    @property
    def enable_write_cache(self) -> bool:
        """Whether writes are cached. If not, each write is on stable storage when it completes."""
        return self._write_cache

    @enable_write_cache.setter
    def enable_write_cache(self, enabled: bool) -> None:
        self._write_cache = enabled
        self._bind()

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        """Write several requests at once; None: nothing has begun, write them one by one."""
        return self.edge.pwritev_burst(offsets, iovs) if self._write_cache else None

    # I/O; `preadv(offset, iov)` and `pwritev(offset, iov, flags)` are set by `_bind`.

    def _pwritev_through(
        self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
    ) -> Coroutine[object, object, None]:
        return self.edge.pwritev(offset, iov, flags | WriteFlags.FUA)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        """Make a range read as zeroes."""
        if not self._write_cache:
            flags |= WriteFlags.FUA
        await self.edge.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        """Forget a range."""
        await self.edge.pdiscard(offset, length)

    async def psecure_erase(self, offset: int, length: int) -> None:
        """Erase a range securely; raises ENOTSUP if the node can't."""
        await self.edge.psecure_erase(offset, length)

    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        """Return at most `count` zones, from the one that contains `offset`."""
        return await self.edge.zone_report(offset, count)

    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        """Open, close, finish or reset the zones of a range."""
        await self.edge.zone_mgmt(op, offset, length)

    async def zone_append(self, offset: int, iov: IoVec) -> int:
        """Append to the zone at `offset`; return the offset of the data."""
        flags = WriteFlags.NONE if self._write_cache else WriteFlags.FUA
        return await self.edge.zone_append(offset, iov, flags)

    async def flush(self) -> None:
        """Put completed writes on stable storage."""
        await self.edge.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of a run at `offset`, of at most `length` bytes."""
        return await self.edge.block_status(offset, length)

    async def truncate(self, size: int, mode: PreallocMode = PreallocMode.OFF) -> None:
        """Change the node's length."""
        await self.edge.truncate(size, mode)

    async def set_active(self, *, active: bool) -> None:
        """Activate or inactivate the node, to hand the image over; raises BlockError.

        See `Graph.set_active`.
        """
        assert self._graph is not None, "not attached"
        if self.node.active != active:
            await self._graph.set_active(self.node.node_name, active=active)

    @property
    def late_modules(self) -> list[str]:
        """Modules that I/O on the node needs and that may not be imported yet."""
        nodes = with_descendants([self.node])
        return list(dict.fromkeys(name for node in nodes for name in node.late_modules))

    def extent_map(self) -> ExtentMap | None:
        """Return the map for direct access to the storage, valid until the next drained section."""
        return self.edge.extent_map()

    def report_io_error(self, operation: IoOperationType, code: int) -> None:
        """Send BLOCK_IO_ERROR for a failed request of this user. Called by devices.

        The block layer can't do this itself, as it doesn't know the effect of the failure.
        """
        if self._graph is not None and self._edge is not None:
            self._graph.report_io_error(self, operation, code)

    # Resizing.

    def on_resize(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called when the node's length has changed."""
        self._resize_callbacks.append(callback)

    def child_resized(self) -> None:
        """Call the resize callbacks if the node's length has changed."""
        size = self.size
        if size == self._known_size:
            return
        self._known_size = size
        for callback in list(self._resize_callbacks):
            callback()

    # Requests in flight.

    def begin(self, count: int = 1) -> None:
        """Count requests that start."""
        self.in_flight += count

    def end(self, count: int = 1) -> None:
        """Count requests that have finished."""
        self.in_flight -= count
        if self._idle and not self.in_flight:
            waiting, self._idle = self._idle, []
            for completion in waiting:
                completion.set_result(None)

    @property
    def quiesced(self) -> bool:
        """Whether no new requests may start."""
        return self._quiesce_depth > 0

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Count one request for the block. Waits while quiesced."""
        while self._quiesce_depth:
            resumed: Completion[None] = Completion()
            self._resumed.append(resumed)
            await resumed
        self.begin()
        try:
            yield
        finally:
            self.end()

    async def drain(self) -> None:
        """Wait until no request is in flight."""
        with self.hurried():
            while self.in_flight:
                idle: Completion[None] = Completion()
                self._idle.append(idle)
                await idle

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Have the nodes below delay no requests inside the block."""
        end = self._hurry()
        try:
            yield
        finally:
            end()

    def _hurry(self) -> Callable[[], None]:
        """Begin a drained section in all nodes below; return a function that ends it.

        The function ends it in the same nodes, even if the graph has changed.
        """
        nodes = [] if self._edge is None else with_descendants([self._edge.node])
        for node in nodes:
            node.drained_begin()

        def end() -> None:
            for node in nodes:
                node.drained_end()

        return end

    def add_drain_listener(self, listener: DrainListener) -> None:
        """Have `listener` called when a drained section begins and ends."""
        self._drain_listeners.append(listener)
        if self.quiesced:
            listener.drained_begin()

    def remove_drain_listener(self, listener: DrainListener) -> None:
        """Undo `add_drain_listener`."""
        self._drain_listeners.remove(listener)

    @asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Have no requests in flight inside the block, and start none. May be nested."""
        self.quiesce()
        try:
            await self.drain()
            yield
        finally:
            self.resume()

    def quiesce(self) -> None:
        """Start no more requests until `resume()`; may be nested. `drain()` waits for the rest."""
        self._quiesce_depth += 1
        if self._quiesce_depth == 1:
            if trace.blk_drained_begin.enabled:
                trace.blk_drained_begin(self.name)
            for listener in list(self._drain_listeners):
                listener.drained_begin()
            self._end_hurry = self._hurry()

    def resume(self) -> None:
        """Undo one `quiesce()`."""
        self._quiesce_depth -= 1
        if not self._quiesce_depth:
            self._resume()

    def _resume(self) -> None:
        if trace.blk_drained_end.enabled:
            trace.blk_drained_end(self.name)
        if self._end_hurry is not None:
            self._end_hurry()
            self._end_hurry = None
        for listener in list(self._drain_listeners):
            listener.drained_end()
        waiting, self._resumed = self._resumed, []
        for completion in waiting:
            completion.set_result(None)


async def _no_medium(*_arguments: object) -> None:
    """I/O method while no node is attached: raise OSError(ENOMEDIUM)."""
    raise os_error(errno.ENOMEDIUM)
