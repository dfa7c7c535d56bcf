# SPDX-License-Identifier: Apache-2.0
"""`BlockBackend`: how an export, a job or a command uses a node.

It is the user's end of an edge: it holds the permissions, counts requests in flight, and lets the
graph be changed between requests (drain). On the hot path it is not there at all: while attached,
`preadv` and `pwritev` *are* those of the edge. A user counts its requests with `begin(n)` and
`end(n)`, a whole burst at a time if it likes, and takes no new ones while `quiesced`; it may ask to
be told (`add_drain_listener`). Coroutines without such a scheme write `async with
backend.request():`, which waits.
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
    """Someone who starts requests of their own accord and can be asked to stop."""

    def drained_begin(self) -> None:
        """Start no new requests."""

    def drained_end(self) -> None:
        """Go on, with what has come meanwhile."""


class BlockBackend:
    """One user of a node.

    `shared_outside` is what other processes may do meanwhile, by means of the image locks. The
    default: who writes lets nobody else write or resize.
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
        #: What offset and length of every request are multiples of; set before attaching.
        self.request_alignment = 1
        #: Writes past the end make the node longer, given the permission RESIZE.
        self.writes_past_end = False
        #: Uses the node only when it is active, and bears with its becoming inactive.
        self.allow_inactive = False
        self._edge: Edge | None = None
        self._graph: Graph | None = None
        self._known_size = 0
        self._write_cache = True
        self._quiesce_depth = 0
        #: Ends what `_hurry()` began for the drained section.
        self._end_hurry: Callable[[], None] | None = None
        self._idle: list[Completion[None]] = []
        self._resumed: list[Completion[None]] = []
        self._drain_listeners: list[DrainListener] = []
        self._resize_callbacks: list[Callable[[], object]] = []
        self._bind()

    @property
    def description(self) -> str:
        """What messages call this user."""
        return f"block device '{self.name}'" if self.name else "an unnamed block device"

    # Attaching.

    def attach(self, graph: Graph, node: BlockNode) -> None:
        """Start to use a node; raises BlockError where its other users exclude that."""
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
        """Point the I/O methods where they lead now."""
        edge = self._edge
        if edge is None:
            self.preadv: Callable[[int, IoVec], Coroutine[object, object, None]] = _no_medium
            self.pwritev: Callable[..., Coroutine[object, object, None]] = _no_medium
            return
        self.preadv = edge.preadv
        self.pwritev = edge.pwritev if self._write_cache else self._pwritev_through

    @property
    def edge(self) -> Edge:
        """The edge to the node; raises OSError(ENOMEDIUM) when there is none."""
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
        """The node's limits. They need not be kept: the edge shapes requests."""
        return self.edge.node.limits

    @property
    def writable(self) -> bool:
        """Tell whether this user may write."""
        return self._edge is not None and self._edge.writable

    @property
    def enable_write_cache(self) -> bool:
        """False: each write is on stable storage when it completes."""
        return self._write_cache

    @enable_write_cache.setter
    def enable_write_cache(self, enabled: bool) -> None:
        self._write_cache = enabled
        self._bind()

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        """Do writes all at once; None: nothing has begun, and they are to be done one by one."""
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
        """Forget a range for good; raises ENOTSUP where the node can't."""
        await self.edge.psecure_erase(offset, length)

    async def zone_report(self, offset: int, count: int) -> list[Zone]:
        """Describe at most `count` zones from the one with `offset` on."""
        return await self.edge.zone_report(offset, count)

    async def zone_mgmt(self, op: ZoneOp, offset: int, length: int) -> None:
        """Open, close, finish or reset the zones of a range."""
        await self.edge.zone_mgmt(op, offset, length)

    async def zone_append(self, offset: int, iov: IoVec) -> int:
        """Write to the zone at `offset`, where its write pointer is; return where that was."""
        flags = WriteFlags.NONE if self._write_cache else WriteFlags.FUA
        return await self.edge.zone_append(offset, iov, flags)

    async def flush(self) -> None:
        """Put completed writes on stable storage."""
        await self.edge.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        """Describe a run at `offset`, of at most `length` bytes."""
        return await self.edge.block_status(offset, length)

    async def truncate(self, size: int, mode: PreallocMode = PreallocMode.OFF) -> None:
        """Change the node's length."""
        await self.edge.truncate(size, mode)

    async def set_active(self, *, active: bool) -> None:
        """Take the image back from another process, or leave it to others; raises BlockError.

        See `Graph.set_active`.
        """
        assert self._graph is not None, "not attached"
        if self.node.active != active:
            await self._graph.set_active(self.node.node_name, active=active)

    @property
    def late_modules(self) -> list[str]:
        """Modules that I/O on the node takes, and that may not have been imported yet."""
        nodes = with_descendants([self.node])
        return list(dict.fromkeys(name for node in nodes for name in node.late_modules))

    def extent_map(self) -> ExtentMap | None:
        """Say what may be done with the storage without asking, until the next drained section."""
        return self.edge.extent_map()

    def report_io_error(self, operation: IoOperationType, code: int) -> None:
        """Tell monitors that a request of this user failed with an errno; for devices to call.

        The block layer doesn't by itself, as it can't tell what such a failure means.
        """
        if self._graph is not None and self._edge is not None:
            self._graph.report_io_error(self, operation, code)

    # Resizing.

    def on_resize(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called when the node's length has changed."""
        self._resize_callbacks.append(callback)

    def child_resized(self) -> None:
        """Pass the news on, if there are any, that the node may have another length."""
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
        """Tell whether no new requests may start."""
        return self._quiesce_depth > 0

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Count one request around a block, which waits while quiesced."""
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
        """Have no node hold requests up inside the block, where somebody waits for them."""
        end = self._hurry()
        try:
            yield
        finally:
            end()

    def _hurry(self) -> Callable[[], None]:
        """Let all nodes below know that requests are waited for; return how to end that.

        The graph may have changed by then: the same nodes are told.
        """
        nodes = [] if self._edge is None else with_descendants([self._edge.node])
        for node in nodes:
            node.drained_begin()

        def end() -> None:
            for node in nodes:
                node.drained_end()

        return end

    def add_drain_listener(self, listener: DrainListener) -> None:
        """Tell `listener` to stop and to go on."""
        self._drain_listeners.append(listener)
        if self.quiesced:
            listener.drained_begin()

    def remove_drain_listener(self, listener: DrainListener) -> None:
        """Undo `add_drain_listener`."""
        self._drain_listeners.remove(listener)

    @asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Have no request in flight, and none begin, inside the block. May be nested."""
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
    """Stand in for I/O methods while no node is attached."""
    raise os_error(errno.ENOMEDIUM)
