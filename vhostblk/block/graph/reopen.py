# SPDX-License-Identifier: Apache-2.0
"""`blockdev-reopen`: other options and children for nodes in use, all or nothing.

The graph is drained, and changed in steps that can be undone. Steps that may fail come first
(opening files again, checking sizes and permissions), and await nothing. Then nodes with other data
below (`data_below`) reload what they keep of it. When all have succeeded, the nodes commit, which
can't fail. Until then each node keeps its former image locks, and users can't attach.

The rules for changes are in `reopen_plan`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.block.graph import data_below, inherit
from vhostblk.block.graph.drain import users_of, with_ancestors, with_descendants
from vhostblk.block.graph.edge import Edge, notify_resize
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permission_update import Pins, update_permissions
from vhostblk.block.graph.reopen_plan import (
    check_backing_given,
    check_options,
    check_unchanged,
    planned_data,
)
from vhostblk.block.graph.storage import check_apart
from vhostblk.block.zones import check_zoned_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.reopen_plan import Change

logger = logging.getLogger(__name__)


class Reopening:
    """Changes of nodes in progress. All users of the nodes are drained."""

    def __init__(self, graph: Graph, changes: list[Change]) -> None:
        self._graph = graph
        self._changes = changes
        self.nodes = [change.node for change in changes]
        #: Nodes that will show other data, with the roles of the children; children come first.
        self.other_data = data_below.nodes_with_other_data(planned_data(graph, changes))
        #: Those of them that keep state of the replaced data.
        self.remembering = [
            node for node, roles in self.other_data.items() if roles & node.remembered_roles
        ]
        #: Nodes that lose an ancestor: former children that are not below the new ones.
        self.leaving = _left(changes, graph)
        #: Former children that were replaced, and their replacements.
        self.replaced: list[BlockNode] = []
        self._new_children: list[BlockNode] = []
        self._prepared: list[BlockNode] = []
        self._loaded: list[BlockNode] = []
        #: Bitmaps in which all data must be marked dirty.
        self._recording = {node: node.recorders for node in self.other_data}
        self._undo: list[Callable[[], None]] = []

    async def run(self) -> None:
        """Make the changes; raises BlockError, and then nothing has changed."""
        sizes = {node: node.size for node in with_ancestors(self.nodes)}
        pins = Pins(with_descendants(self.nodes))
        try:
            self._apply()
            await self._load()
        except BaseException:
            self._take_back()
            raise
        else:
            self._commit(sizes)
        finally:
            pins.release()

    async def _load(self) -> None:
        """Let nodes load other data; then check children whose size may have changed."""
        order = with_ancestors(self.nodes)
        for node in order:
            if node in self.other_data:
                self._loaded.append(node)
                await node.load_other_data(self.other_data[node])
                refresh([node])
        for node in order:
            if self._waits_for_data(node):
                node.check_children()

    def _waits_for_data(self, node: BlockNode) -> bool:
        """Return whether the size of a child may still change."""
        below = with_descendants([edge.node for edge in node.children.values()])
        return any(each in self.other_data for each in below)

    def _apply(self) -> None:
        """Change options, edges and permissions."""
        for change in self._changes:
            check_options(change)
            if not change.other_driver:
                change.node.prepare_reopen(change.options)
                self._prepared.append(change.node)
            check_backing_given(change)
            self._replace_children(change)
            check_unchanged(change)
        writable = self._take_options()
        refresh(self.nodes)
        for node in with_ancestors(self.nodes):
            check_apart(node)
            for edge in node.children.values():
                check_zoned_child(node, edge.node)
            if not self._waits_for_data(node):
                node.check_children()
        update_permissions([*self.nodes, *self.replaced], writable)

    def _replace_children(self, change: Change) -> None:
        """Give a node its new children."""
        node = change.node
        for role, name in change.children.items():
            new = None if name is None else self._graph.find(name)
            if new is not None:
                _check_child(node, role, new)
                self._new_children.append(new)
            edge = node.children.get(role)
            if edge is not None:
                if edge.frozen:
                    raise BlockError(
                        f"Cannot change frozen '{role}' link from '{node.node_name}' to "
                        f"'{edge.node.node_name}'"
                    )
                self.replaced.append(edge.node)
            if edge is not None and new is not None:
                self._undo.append(moved(edge, new))
            elif edge is not None:
                self._undo.append(_removed(node, edge))
            elif new is not None:
                self._undo.append(added(node, role, new))

    def _take_options(self) -> frozenset[BlockNode]:
        """Set the new options; return the nodes that become read-only by them."""
        locked = []
        for change in self._changes:
            node, old, given = change.node, change.node.options, change.node.given_options
            if not node.read_only and change.options.read_only:
                locked.append(node)

            def restore(node: BlockNode = node, old: Any = old, given: Any = given) -> None:
                node.given_options = given
                node.take_options(old)

            self._undo.append(restore)
            node.given_options = change.given
            # An inline child keeps its name, even a generated one.
            node.take_options(change.options)
        return frozenset(locked)

    def _take_back(self) -> None:
        """Undo everything. Each node still has its former image locks, so this succeeds."""
        for node in reversed(self._loaded):
            node.drop_other_data()
        for step in reversed(self._undo):
            step()
        for node in self._prepared:
            node.abort_reopen()
        refresh(self.nodes)
        try:
            update_permissions([*self.nodes, *self._new_children])
        except BlockError as error:
            logger.error("permissions can't be restored: %s", error)

    def _commit(self, sizes: dict[BlockNode, int]) -> None:
        for node in reversed(self.nodes):
            node.commit_reopen()
        for node in self._loaded:
            node.keep_other_data()
        refresh(self.nodes)
        for node, size in sizes.items():
            if node.size != size:
                notify_resize(node)
        for node, bitmaps in self._recording.items():
            _mark_all(node, bitmaps)
        for old in self.replaced:
            old.defined_in = None
        for backend in users_of(self.nodes):
            backend.child_resized()


def _mark_all(node: BlockNode, bitmaps: Iterable[DirtyBitmap]) -> None:
    """Mark all data dirty in those of `bitmaps` that the node still has."""
    for bitmap in bitmaps:
        if bitmap in node.bitmaps:
            bitmap.mark(0, node.size)


def _left(changes: Iterable[Change], graph: Graph) -> list[BlockNode]:
    """Return the nodes that lose an ancestor: below a former child, and not below the new one."""
    found: dict[BlockNode, None] = {}
    for change in changes:
        for role, name in change.children.items():
            if (edge := change.node.children.get(role)) is None:
                continue
            new = next((node for node in graph if node.node_name == name), None)
            kept = with_descendants([] if new is None else [new])
            below = with_descendants([edge.node])
            found |= dict.fromkeys(node for node in below if node not in kept)
    return list(found)


def _check_child(node: BlockNode, role: str, new: BlockNode) -> None:
    name = new.node_name
    if node in with_descendants([new]):
        raise BlockError(
            f"Making '{name}' a {role} child of '{node.node_name}' would create a cycle"
        )
    if node.active and not new.active:
        raise BlockError(f"Inactive '{name}' can't be a {role} child of active '{node.node_name}'")
    check_zoned_child(node, new)


def _removed(node: BlockNode, edge: Edge) -> Callable[[], None]:
    """Remove the backing child of a node; return a function that undoes this."""
    place = edge.node.parents.index(edge)

    def undo() -> None:
        edge.node.parents.insert(place, edge)
        node.children[inherit.BACKING] = edge
        node.child_changed(inherit.BACKING)

    edge.node.parents.remove(edge)
    del node.children[inherit.BACKING]
    node.child_changed(inherit.BACKING)
    return undo


def added(node: BlockNode, role: str, new: BlockNode) -> Callable[[], None]:
    """Add a child to a node; return a function that undoes this."""
    edge = Edge(node, role, new)

    def undo() -> None:
        new.parents.remove(edge)
        del node.children[role]
        node.child_changed(role)

    new.parents.append(edge)
    node.children[role] = edge
    node.child_changed(role)
    return undo


def moved(edge: Edge, new: BlockNode) -> Callable[[], None]:
    """Move an edge to another node; return a function that undoes this.

    The edge object stays, as its parent may hold references to its methods.
    """
    old = edge.node
    place = old.parents.index(edge)
    granted = (edge.perm, edge.shared, edge.shared_outside)

    def undo() -> None:
        new.parents.remove(edge)
        old.parents.insert(place, edge)
        edge.node = old
        edge.perm, edge.shared, edge.shared_outside = granted
        _tell_parent(edge)

    old.parents.remove(edge)
    new.parents.append(edge)
    edge.node = new
    _tell_parent(edge)
    return undo


def _tell_parent(edge: Edge) -> None:
    if isinstance(edge.parent, BlockNode):
        edge.parent.child_changed(edge.role)


def refresh(nodes: list[BlockNode]) -> None:
    """Update limits and options of nodes and of all nodes above."""
    for node in with_ancestors(nodes):
        for edge in node.children.values():
            edge.refresh()
        node.refresh_limits()
        for edge in node.parents:
            edge.refresh()
