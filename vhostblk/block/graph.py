# SPDX-License-Identifier: Apache-2.0
"""`Graph`: all nodes by name, how they are opened, joined by edges and closed.

A node that the user added stays until the user removes it; a child that was defined inline in its
parent's options goes away with its last parent. A node gets its name once it is open, and children
are named or defined while their parent opens, so cycles can't come about.

Permissions are checked edge by edge and take effect all or nothing: see `_update_permissions`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.block.edge import Edge
from vhostblk.block.errors import BlockError, NodeNotFoundError, PermissionConflictError
from vhostblk.block.node import BlockNode
from vhostblk.block.permissions import Perm, names_of
from vhostblk.block.registry import driver_class, driver_name
from vhostblk.schema.base import UNSET
from vhostblk.schema.block import BlockdevDetectZeroesOptions, BlockdevDiscardOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.backend import BlockBackend

#: What QEMU takes as an identifier, and its length limit for node names.
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*")
_NAME_BYTES = 31

_Grant = tuple[BlockNode, Perm, Perm]


class Graph:
    """The block graph of one daemon; used on the event loop's thread only."""

    def __init__(self) -> None:
        self._nodes: dict[str, BlockNode] = {}
        #: Names of nodes that the user added, as opposed to inline children.
        self._owned: set[str] = set()
        #: Edges made for a node that is still being opened.
        self._opening: dict[str, list[Edge]] = {}
        self._next_number = 100

    def __iter__(self) -> Iterator[BlockNode]:
        return iter(list(self._nodes.values()))

    async def add(self, options: Any) -> BlockNode:
        """Open a node (and inline children) that stays until `remove()`."""
        if options.node_name is UNSET:
            raise BlockError("'node-name' must be specified for the root node")
        node = await self._open(options)
        self._owned.add(node.node_name)
        return node

    def find(self, name: str) -> BlockNode:
        """Return a node by name; raises NodeNotFoundError."""
        return self._lookup(name, device="")

    def _lookup(self, name: str, device: str) -> BlockNode:
        node = self._nodes.get(name)
        if node is None:
            raise NodeNotFoundError(f"Cannot find device='{device}' nor node-name='{name}'")
        return node

    async def open_child(self, parent: BlockNode, role: str, ref: Any) -> BlockNode:
        """Give a node that is being opened a child: an existing node, or one defined inline.

        When the parent fails to open, the graph takes its children away again.
        """
        if isinstance(ref, str):
            node = self._lookup(ref, device=ref)
        else:
            node = await self._open(_inherit(ref, parent.options))
        edge = Edge(parent, role, node)
        try:
            self._attach(edge)
        except BaseException:
            await self._close_unused(node)
            raise
        parent.children[role] = edge
        self._opening[parent.node_name].append(edge)
        return node

    def attach(self, backend: BlockBackend, node: BlockNode) -> Edge:
        """Make the edge from a block backend to its node; raises BlockError on a conflict."""
        edge = Edge(backend, "root", node, backend.perm, backend.shared, backend.shared_outside)
        self._attach(edge)
        return edge

    async def detach(self, edge: Edge) -> None:
        """Take an edge away; an inline child without users is closed."""
        node = edge.node
        node.parents.remove(edge)
        _update_permissions([node])
        await self._close_unused(node)

    async def remove(self, name: str) -> None:
        """Close a node that the user added; raises BlockError while it is in use."""
        node = self._nodes.get(name)
        if node is None:
            raise NodeNotFoundError(f"Failed to find node with node-name='{name}'")
        if any(not isinstance(edge.parent, BlockNode) for edge in node.parents):
            raise BlockError(f"Node {name} is in use")
        if name not in self._owned:
            raise BlockError(f"Node {name} is not owned by the monitor")
        if node.parents:
            raise BlockError(f"Block device {name} is in use")
        self._owned.discard(name)
        await self._close_unused(node)

    async def close(self) -> None:
        """Close every node, users before what they use; no block backend is attached any more."""
        self._owned.clear()
        while unused := [node for node in self._nodes.values() if not node.parents]:
            for node in unused:
                await self._close_unused(node)
        for node in self._nodes.values():
            raise BlockError(f"Node {node.node_name} is in use")

    async def _open(self, options: Any) -> BlockNode:
        """Open a node and register it."""
        name = self._check_name(options.node_name)
        _check_options(options)
        edges = self._opening[name] = []
        try:
            node = await driver_class(driver_name(options)).open(name, options, self)
        except BaseException:
            for edge in edges:
                await self.detach(edge)
            raise
        finally:
            del self._opening[name]
        self._nodes[name] = node
        return node

    def _check_name(self, name: Any) -> str:
        """Check a node's name, or make one up."""
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
        """Close a node that neither a parent nor the user holds, and then its children likewise."""
        name = node.node_name
        if node.parents or name in self._owned or self._nodes.pop(name, None) is None:
            return
        try:
            await node.close()
        finally:
            for edge in node.children.values():
                await self.detach(edge)

    def _attach(self, edge: Edge) -> None:
        """Enter an edge into its node's list of users and take what it needs."""
        node = edge.node
        if isinstance(edge.parent, BlockNode):
            _derive(edge)
        _check_conflicts(edge)
        node.parents.append(edge)
        try:
            _update_permissions([node])
        except BaseException:
            node.parents.remove(edge)
            _update_permissions([node])
            raise
        edge.refresh()


def _check_options(options: Any) -> None:
    """Refuse combinations of common options that make no sense, in QEMU's words."""
    if options.force_share and not options.read_only:
        raise BlockError("force-share=on can only be used with read-only images")
    if (
        options.detect_zeroes is BlockdevDetectZeroesOptions.UNMAP
        and options.discard is not BlockdevDiscardOptions.UNMAP
    ):
        raise BlockError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to "
            "unmap"
        )


def _inherit(child: Any, parent: Any) -> Any:
    """Give an inline child the options of its parent that it doesn't set itself."""
    changes: dict[str, Any] = {
        name: getattr(parent, name)
        for name in ("read_only", "auto_read_only", "force_share", "discard")
        if getattr(child, name) == _default(child, name)
    }
    if child.cache == _default(child, "cache"):
        changes["cache"] = parent.cache
    return msgspec.structs.replace(child, **changes)


def _default(options: Any, name: str) -> Any:
    """Return the default of an options struct's member."""
    for field in msgspec.structs.fields(options):
        if field.name == name:
            return field.default
    raise AttributeError(name)


# Permissions.


def cumulative(node: BlockNode) -> tuple[Perm, Perm, Perm]:
    """Return what all users of a node take, share inside, and share outside."""
    perm, shared, outside = Perm.NONE, Perm.ALL, Perm.ALL
    for edge in node.parents:
        perm |= edge.perm
        shared &= edge.shared
        outside &= edge.shared_outside
    return perm, shared, outside & shared


def _derive(edge: Edge) -> None:
    """Work out what a node needs of a child from what its own users need of it."""
    parent = edge.parent
    assert isinstance(parent, BlockNode)
    perm, shared, outside = cumulative(parent)
    edge.perm, edge.shared = parent.child_permissions(edge.role, perm, shared)
    edge.shared_outside = edge.shared & parent.child_permissions(edge.role, perm, outside)[1]


def _check_conflicts(edge: Edge) -> None:
    """Raise PermissionConflictError where another user of the same node and `edge` exclude."""
    for other in edge.node.parents:
        if other is edge:
            continue
        for needs, bars in ((edge, other), (other, edge)):
            if conflict := needs.perm & ~bars.shared:
                raise PermissionConflictError(
                    f"Permission conflict on node '{edge.node.node_name}': permissions "
                    f"'{names_of(conflict)}' are both required by {needs.describe()} and unshared "
                    f"by {bars.describe()}."
                )


def _update_permissions(nodes: list[BlockNode]) -> None:
    """Bring nodes and everything below in line with what their users need now.

    First all edges are worked out and checked, then the nodes take what they need from outside,
    top down. When one of them can't, those before it go back to what they had; that never fails,
    because it was less.
    """
    edges: list[tuple[Edge, Perm, Perm, Perm]] = []
    applied: list[_Grant] = []
    try:
        order = _refresh_below(nodes, edges)
        for node in order:
            perm, _, outside = cumulative(node)
            if perm & (Perm.WRITE | Perm.WRITE_UNCHANGED) and node.read_only:
                raise BlockError(f"Node '{node.node_name}': Block node is read-only")
            applied.append((node, *node.granted))
            if node.options.force_share:
                outside = Perm.ALL
            node.apply_permissions(perm, outside)
            node.granted = (perm, outside)
    except BaseException:
        for edge, perm, shared, outside in edges:
            edge.perm, edge.shared, edge.shared_outside = perm, shared, outside
        for node, perm, outside in reversed(applied):
            if node.granted != (perm, outside):
                node.apply_permissions(perm, outside)
                node.granted = (perm, outside)
        raise
    for edge, *_ in edges:
        edge.refresh()


def _refresh_below(
    nodes: list[BlockNode], edges: list[tuple[Edge, Perm, Perm, Perm]]
) -> list[BlockNode]:
    """Derive and check all edges below `nodes`; old values go to `edges`. Returns parents first."""
    order: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node in order:  # reached by two ways: later, when both have been derived
            order.remove(node)
        order.append(node)
        for edge in node.children.values():
            if edge not in edge.node.parents:
                continue
            edges.append((edge, edge.perm, edge.shared, edge.shared_outside))
            _derive(edge)
            _check_conflicts(edge)
            pending.append(edge.node)
    return order
