# SPDX-License-Identifier: Apache-2.0
"""`Graph`: all nodes by name. It opens nodes, joins them by edges, and closes them.

A node that the user added stays until the user removes it. A child defined inline in its parent's
options is closed with its last parent. A node is registered once it is open, and its children are
referred to or defined while it opens, so opening can't make a cycle; `reopen` checks for cycles.

Permissions are checked edge by edge and take effect for all nodes or for none:
`block.graph.permission_update`.

Commands that await something run one at a time. Block backends may attach and detach at any time,
so the graph awaits nothing between checking the graph and changing it; while nodes are being
reopened, no backend may attach. Nodes in use are changed inside a drained section.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError, NodeNotFoundError, NoNode
from vhostblk.block.graph import activation, inherit
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.drain import DrainedSection, with_descendants
from vhostblk.block.graph.edge import Edge, flush_node
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permission_update import check_conflicts, derive, update_permissions
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import check_apart
from vhostblk.block.io.turns import Turns
from vhostblk.block.registry import driver_class, driver_name
from vhostblk.block.throttle_group import ThrottleGroups
from vhostblk.block.zones import check_zoned_child
from vhostblk.errors import error_context, errors_as, log_error, log_failure, reason
from vhostblk.events import EventBus
from vhostblk.reservations.manager import Managers
from vhostblk.schema.base import UNSET
from vhostblk.schema.block import BlockErrorAction, BlockIoError, BlockWriteThreshold
from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator

    from vhostblk.block.graph.reopen import Reopening
    from vhostblk.block.graph.reopen_plan import Change
    from vhostblk.schema.block import IoOperationType

logger = logging.getLogger(__name__)

#: QEMU's identifiers. QEMU also limits the length of node names.
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*")
_NAME_BYTES = 31


class Graph:
    """The block graph of one daemon; used on the event loop's thread only."""

    def __init__(self, events: EventBus | None = None) -> None:
        self._events = events or EventBus()
        #: The groups that `throttle` nodes refer to.
        self.throttle_groups = ThrottleGroups()
        #: The reservation managers that nodes of devices refer to.
        self.pr_managers = Managers()
        #: The lock for commands, which run one at a time.
        self._changing = Turns()
        #: Whether a change is in progress that may still be undone. Users can't attach meanwhile.
        self._switching = False
        #: Drained sections that only make users fetch the extent maps again.
        self._refreshing: set[asyncio.Task[None]] = set()
        self._drained_sections: list[DrainedSection] = []
        self._nodes: dict[str, BlockNode] = {}
        #: Names of nodes that the user added. The others are inline children.
        self._owned: set[str] = set()
        #: Edges of nodes that are still being opened, by the parent's name.
        self._opening: dict[str, list[Edge]] = {}
        #: Edges of block backends, in order of creation.
        self._roots: dict[Edge, None] = {}
        self._next_number = 100

    def __iter__(self) -> Iterator[BlockNode]:
        return iter(list(self._nodes.values()))

    def is_owned(self, node: BlockNode) -> bool:
        """Return whether the user added the node."""
        return node.node_name in self._owned

    @property
    def events(self) -> EventBus:
        """The receiver of nodes' events."""
        return self._events

    @property
    def opening_depth(self) -> int:
        """How deeply the definitions of the nodes being opened are nested."""
        return len(self._opening)

    @property
    def backends(self) -> list[BlockBackend]:
        """The block backends in use, the oldest first."""
        return [edge.parent for edge in self._roots if not isinstance(edge.parent, BlockNode)]

    async def add(self, options: Any) -> BlockNode:
        """Open a node and its inline children. The node stays until `remove()`."""
        if options.node_name is UNSET:
            raise BlockError("'node-name' must be specified for the root node")
        async with self._changing:
            node = await self._open(inherit.resolve(options))
            self._owned.add(node.node_name)
            return node

    def find(
        self, name: str, words: NoNode = NoNode.DEVICE_OR_NODE, *, device: str = ""
    ) -> BlockNode:
        """Return a node by name; raises NodeNotFoundError with the given message.

        `device` is the device name in the message; there are no devices here.
        """
        node = self._nodes.get(name)
        if node is None:
            raise NodeNotFoundError(name, words, device)
        return node

    async def open_child(self, parent: BlockNode, role: str, ref: Any) -> BlockNode:
        """Add a child to a node that is being opened: an existing node, or one defined inline.

        If opening the parent fails, the graph removes the children.
        """
        if isinstance(ref, str):
            node = self.find(ref, device=ref)
        else:
            node = await self._open(inherit.resolve_child(ref, role, parent.options))
            node.defined_in, node.given_options = parent, ref
        edge = Edge(parent, role, node)
        try:
            self._attach(edge)
        except BaseException:
            await self._close_unused(node)
            raise
        parent.children[role] = edge
        self._opening[parent.node_name].append(edge)
        check_apart(parent)
        return node

    async def close_child(self, parent: BlockNode, role: str) -> None:
        """Remove a child of a node, which is being opened or drained."""
        edge = parent.children.pop(role)
        opening = self._opening.get(parent.node_name, [])
        if edge in opening:
            opening.remove(edge)
        await self.detach(edge)

    @asynccontextmanager
    async def borrowed(self, ref: Any) -> AsyncIterator[BlockNode]:
        """Hold an existing node, or one defined here, inside the block.

        A node defined here is closed afterwards unless it is in use. Raises BlockError.
        """
        holder = BlockBackend("", Perm.NONE)
        async with self._changing:
            if isinstance(ref, str):
                node = self.find(ref, device=ref)
            else:
                node = await self._open(inherit.resolve(ref))
            holder.attach(self, node)
        try:
            yield node
        finally:
            await holder.detach()

    def attach(self, backend: BlockBackend, node: BlockNode) -> Edge:
        """Create the edge from a block backend to a node; raises BlockError on a conflict.

        Call this inside `changing()` in a task that may run concurrently with graph changes.
        """
        if self._switching:
            raise BlockError(f"Node '{node.node_name}' is busy: nodes are being reopened")
        edge = Edge(backend, "root", node)
        self._attach(edge)
        self._roots[edge] = None
        for section in self._drained_sections:
            section.hold_users()
        return edge

    async def detach(self, edge: Edge) -> None:
        """Remove an edge. An inline child without users is closed."""
        node = edge.node
        node.parents.remove(edge)
        self._roots.pop(edge, None)
        update_permissions([node])
        await self._close_unused(node)

    async def remove(self, name: str) -> None:
        """Close a node that the user added; raises BlockError while it is in use."""
        async with self._changing:
            node = self.find(name, NoNode.NODE_NAME)
            if any(not isinstance(edge.parent, BlockNode) for edge in node.parents):
                raise BlockError(f"Node {name} is in use")
            check_not_backing(node)
            if name not in self._owned:
                raise BlockError(f"Node {name} is not owned by the monitor")
            if node.parents:
                raise BlockError(f"Block device {name} is in use")
            self._owned.discard(name)
            await self._close_unused(node)

    async def close(self) -> None:
        """Close all nodes, parents before children. No block backend is attached any more."""
        async with self._changing:
            if self._refreshing:
                await asyncio.wait(self._refreshing)
            self._owned.clear()
            while unused := [node for node in self._nodes.values() if not node.parents]:
                for node in unused:
                    await self._close_unused(node)
            for node in self._nodes.values():
                raise BlockError(f"Node {node.node_name} is in use")

    # Changing nodes in use.

    @asynccontextmanager
    async def drained(self, nodes: Iterable[BlockNode]) -> AsyncIterator[None]:
        """Have no request in flight to any of these nodes inside the block."""
        section = DrainedSection(nodes)
        self._drained_sections.append(section)
        try:
            section.hold_users()
            await section.wait()
            yield
        finally:
            self._drained_sections.remove(section)
            section.release_users()

    async def reopen(self, definitions: Iterable[Any]) -> None:
        """Change options and children of nodes: all or none. See `block.graph.reopen`."""
        from vhostblk.block.graph import reopen_plan

        async with self._changing:
            await self._reopen(reopen_plan.plan(self, definitions))

    async def _reopen(self, changes: list[Change]) -> None:
        from vhostblk.block.graph.reopen import Reopening

        nodes = [change.node for change in changes]
        async with self.drained(nodes):
            reopening = Reopening(self, changes)
            loading = reopening.remembering
            await _flush(dict.fromkeys([*reversed(loading), *nodes]), "Error flushing drive")
            await _release_children(reopening.leaving)
            opening = [change.node for change in changes if change.opens_for_writing]
            closing = [change.node for change in changes if change.options.read_only]
            async with _writing_given_up(list(dict.fromkeys([*closing, *loading])), ""):
                await self._switch(reopening)
            await _finish(
                _each(
                    [
                        *(partial(self._close_unused, node) for node in reopening.replaced),
                        *(node.reload_image for node in reversed(opening) if node not in loading),
                        *(node.start_writing for node in loading),
                    ]
                )
            )

    async def _switch(self, reopening: Reopening) -> None:
        """Make the changes of `reopening`; users can't attach until they are final or undone."""
        self._switching = True
        try:
            await reopening.run()
        finally:
            self._switching = False

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Let no other task change the graph inside the block; this task may."""
        async with self._changing:
            yield

    async def make_read_only(self, node: BlockNode, *, read_only: bool = True) -> None:
        """Change a node between read-only and writable, and nothing else; inside `changing()`.

        Raises BlockError.
        """
        from vhostblk.block.graph import reopen_plan

        if node.read_only != read_only:
            await self._reopen(reopen_plan.plan_read_only(node, read_only=read_only))

    async def add_child(self, parent: BlockNode, child: BlockNode) -> None:
        """Add a child to a node; raises BlockError."""
        from vhostblk.block.graph import reopen
        from vhostblk.block.graph.members import ChangesChildren

        name = child.node_name
        async with self._changing, self.drained([parent]):
            if not isinstance(parent, ChangesChildren):
                raise BlockError(f"The node {parent.node_name} does not support adding a child")
            if child.parents:
                raise BlockError(f"The node {name} already has a parent")
            role = parent.new_role()
            if parent in with_descendants([child]):
                raise BlockError(
                    f"Making '{name}' a {role} child of '{parent.node_name}' would create a cycle"
                )
            edge = Edge(parent, role, child)
            self._attach(edge)
            parent.children[role] = edge
            try:
                check_apart(parent)
            except BlockError:
                del parent.children[role]
                await self.detach(edge)
                raise
            parent.child_added(role)
            reopen.refresh([parent])

    async def remove_child(self, parent: BlockNode, role: str) -> None:
        """Remove a child of a node; raises BlockError."""
        from vhostblk.block.graph import reopen
        from vhostblk.block.graph.members import ChangesChildren

        async with self._changing, self.drained([parent]):
            if role not in parent.children:
                raise BlockError(f"Node '{parent.node_name}' does not have child '{role}'")
            if not isinstance(parent, ChangesChildren):
                raise BlockError(f"The node {parent.node_name} does not support removing a child")
            parent.check_loss(role)
            edge = parent.children.pop(role)
            parent.child_removed(role)
            reopen.refresh([parent])
            await self.detach(edge)

    async def resize(self, node: BlockNode, size: int) -> None:
        """Change a node's length, and notify all its users at once; raises BlockError."""
        async with self._changing:
            check_not_backing(node)
            backend = BlockBackend("", Perm.RESIZE)
            backend.attach(self, node)
            try:
                with errors_as(BlockError, node=node.node_name):
                    async with self.drained([node]):
                        await backend.truncate(size)
            finally:
                await backend.detach()

    async def set_active(self, name: str | None, *, active: bool) -> None:
        """Activate or inactivate a node, to hand its image over; None: all nodes.

        On BlockError nothing has changed.
        """
        async with self._changing:
            chosen = list(self) if name is None else [self.find(name, NoNode.NODE_NAME)]
            if active:
                await self._activate(chosen)
                return
            if name is not None and activation.has_active_parent(chosen[0]):
                raise BlockError("Node has active parent node")
            what = f"Failed to inactivate {'all nodes' if name is None else 'node'}"
            async with self.drained(chosen):
                await _flush(with_descendants(chosen), what)
                try:
                    nodes = activation.to_inactivate(chosen)
                    async with _writing_given_up(nodes, what):
                        # Users may have attached since the first check.
                        activation.inactivate(activation.to_inactivate(chosen))
                except activation.InactivationError as error:
                    raise BlockError(f"{what}: {error}") from error

    async def _activate(self, chosen: list[BlockNode]) -> None:
        async with self.drained(with_descendants(chosen)):
            nodes = activation.to_activate(chosen)
            activation.activate(nodes)
            try:
                for node in reversed(nodes):
                    await node.reload_image()
            except BlockError:
                activation.inactivate(nodes)
                raise

    async def set_write_threshold(self, node: BlockNode, offset: int) -> None:
        """Set the offset whose first crossing by a write sends BLOCK_WRITE_THRESHOLD; 0: none."""
        async with self.drained([node]):
            self._set_threshold(node, offset)

    def _set_threshold(self, node: BlockNode, offset: int) -> None:
        node.write_threshold = offset
        node.on_threshold = self._threshold_exceeded
        for edge in node.parents:
            edge.refresh()

    def _threshold_exceeded(self, node: BlockNode, end: int) -> None:
        offset = node.write_threshold
        self._set_threshold(node, 0)
        self._events.emit(
            "BLOCK_WRITE_THRESHOLD",
            BlockWriteThreshold(
                node_name=node.node_name, amount_exceeded=end - offset, write_threshold=offset
            ),
        )
        # Extent maps can allow writes again.
        task = asyncio.get_running_loop().create_task(
            self._refresh_maps(node), name=f"node '{node.node_name}': a new extent map"
        )
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)
        task.add_done_callback(log_failure)

    def report_io_error(self, backend: BlockBackend, operation: IoOperationType, code: int) -> None:
        """Send BLOCK_IO_ERROR: a request of a node's user failed with the errno `code`."""
        data = BlockIoError(
            qom_path="",  # users of nodes are not QOM objects
            device=backend.name,
            node_name=backend.node.node_name,
            operation=operation,
            action=BlockErrorAction.REPORT,
            nospace=code == errno.ENOSPC,
            reason=reason(code),
        )
        self._events.emit("BLOCK_IO_ERROR", data)

    async def _refresh_maps(self, node: BlockNode) -> None:
        async with self.drained([node]):
            pass

    async def _open(self, options: Any) -> BlockNode:
        """Open and register a node with resolved options."""
        name = self._check_name(options.node_name)
        inherit.check_options(options)
        edges = self._opening[name] = []
        try:
            driver = driver_name(options)
            if trace.bdrv_open_common.enabled:
                trace.bdrv_open_common(name, driver)
            with error_context(node=name):
                node = await driver_class(driver).open(name, options, self)
        except BaseException:
            for edge in edges:
                await self.detach(edge)
            raise
        finally:
            del self._opening[name]
        self._nodes[name] = node
        return node

    def _check_name(self, name: Any) -> str:
        """Return a node's name after checking it, or a generated one."""
        if name is UNSET:
            self._next_number += 1
            return f"#block{self._next_number}"
        if not _IDENTIFIER.fullmatch(name):
            raise BlockError(f"Invalid node-name: '{name}'")
        if name in self._nodes or name in self._opening:
            raise BlockError(f"Duplicate nodes with node-name='{name}'")
        if len(name) > _NAME_BYTES:
            raise BlockError("Node name too long")
        return str(name)

    async def _close_unused(self, node: BlockNode) -> None:
        """Close a node without parents that the user doesn't own, then its children likewise.

        A pinned node stays open, as undoing a change may give its parent back; `_reopen` closes it
        afterwards.
        """
        name = node.node_name
        if node.parents or name in self._owned or node.pinned:
            return
        if self._nodes.pop(name, None) is None:
            return
        try:
            await node.settle()
            await node.close()
        finally:
            for edge in node.children.values():
                await self.detach(edge)

    def _attach(self, edge: Edge) -> None:
        """Add an edge to its node's parents, and update permissions."""
        node, parent = edge.node, edge.parent
        if not isinstance(parent, BlockNode):
            activation.grant_backend(edge)
        elif parent.active and not node.active:
            raise BlockError(
                f"Inactive '{node.node_name}' can't be a {edge.role} child of active "
                f"'{parent.node_name}'"
            )
        else:
            check_zoned_child(parent, node)
            derive(edge)
        check_conflicts(edge)
        node.parents.append(edge)
        try:
            update_permissions([node])
        except BaseException:
            node.parents.remove(edge)
            update_permissions([node])
            raise
        edge.refresh()


def check_not_backing(node: BlockNode) -> None:
    """Raise BlockError if a node is the backing image of another."""
    for edge in reversed(node.parents):
        if isinstance(edge.parent, BlockNode) and edge.role == inherit.BACKING:
            raise BlockError(
                f"Node '{node.node_name}' is busy: node is used as backing hd of "
                f"'{edge.parent.node_name}'"
            )


async def _flush(nodes: Iterable[BlockNode], what: str) -> None:
    """Flush a node; raises BlockError."""
    for node in nodes:
        with errors_as(BlockError, what, node=node.node_name):
            await flush_node(node)


async def _release_children(nodes: Iterable[BlockNode]) -> None:
    """Have nodes release the permissions that they hold for themselves; raises BlockError."""
    for node in nodes:
        with errors_as(BlockError, f"Node '{node.node_name}' can't be replaced"):
            await node.release_children()


async def _each(steps: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all steps in order, even if some fail; raise the first error."""
    failed: Exception | None = None
    for step in steps:
        try:
            await step()
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed


async def _finish(steps: Coroutine[Any, Any, None]) -> None:
    """Run the steps that complete a final change, even if the caller is cancelled.

    Nodes with other data below refuse writes until then.
    """
    task = asyncio.get_running_loop().create_task(steps)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        task.result()
        return
    if (failed := task.exception()) is not None:
        log_error(logger, "after a command that was cancelled", failed)
    raise cancelled


@asynccontextmanager
async def _writing_given_up(nodes: list[BlockNode], what: str) -> AsyncIterator[None]:
    """Have nodes write back their state. If this or the block fails, they resume writing.

    Raises BlockError.
    """
    try:
        for node in nodes:
            with errors_as(BlockError, what, node=node.node_name):
                await node.give_up_writing()
        yield
    except BaseException:
        for node in nodes:
            await node.resume_writing()
        raise
