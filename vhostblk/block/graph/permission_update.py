# SPDX-License-Identifier: Apache-2.0
"""Updates of permissions to what the users of nodes need: all or nothing.

Parents' permissions propagate down edge by edge (`derive`). Each edge is checked against the other
users of its node. Then each node acquires what it needs outside (image locks, a writable
descriptor). If one fails, all is restored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError, PermissionConflictError
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permissions import Perm, names_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from vhostblk.block.graph.edge import Edge

_Grant = tuple[BlockNode, Perm, Perm]

_WRITERS = Perm.WRITE | Perm.WRITE_UNCHANGED


def cumulative(node: BlockNode) -> tuple[Perm, Perm, Perm]:
    """Return what all users of a node take, share inside, and share outside."""
    perm, shared, outside = Perm.NONE, Perm.ALL, Perm.ALL
    for edge in node.parents:
        perm |= edge.perm
        shared &= edge.shared
        outside &= edge.shared_outside
    return perm, shared, outside & shared


def derive(edge: Edge) -> None:
    """Compute an edge's permissions from those of its parent's users."""
    parent = edge.parent
    assert isinstance(parent, BlockNode)
    if not parent.active:
        edge.perm, edge.shared, edge.shared_outside = Perm.NONE, Perm.ALL, Perm.ALL
        return
    perm, shared, outside = cumulative(parent)
    edge.perm, edge.shared = parent.child_permissions(edge.role, perm, shared)
    if edge.exclusive:
        edge.shared = Perm.NONE
    edge.shared_outside = edge.shared & parent.child_permissions(edge.role, perm, outside)[1]


def check_conflicts(edge: Edge) -> None:
    """Raise PermissionConflictError if `edge` and another user of its node exclude each other.

    `edge` need not be among the node's parents yet. If several users conflict, the message names
    the same user as QEMU, which checks the newest first.
    """
    users = edge.node.parents if edge in edge.node.parents else [*edge.node.parents, edge]
    for bars in reversed(users):
        for needs in (edge,) if bars is not edge else reversed(users):
            conflict = needs.perm & ~bars.shared
            if conflict and needs is not bars:
                raise PermissionConflictError(
                    f"Permission conflict on node '{edge.node.node_name}': permissions "
                    f"'{names_of(conflict)}' are both required by {needs.describe()} and unshared "
                    f"by {bars.describe()}."
                )


def update_permissions(
    nodes: Iterable[BlockNode], were_writable: AbstractSet[BlockNode] = frozenset()
) -> None:
    """Update the permissions of nodes and of all nodes below.

    First all edges are computed and checked. Then the nodes acquire what they need outside, top
    down. If one fails, the nodes before it return to their former permissions; that never fails,
    because these were less. `were_writable` are nodes that are being made read-only.
    """
    edges: list[tuple[Edge, Perm, Perm, Perm]] = []
    applied: list[_Grant] = []
    try:
        for node in _refresh_below(nodes, edges):
            perm, _, outside = cumulative(node)
            if perm & _WRITERS and node.read_only:
                raise _read_only(node, node in were_writable)
            if perm & _WRITERS & ~node.granted[0]:
                _check_size(node, perm)
            applied.append((node, *node.granted))
            if node.options.force_share:
                outside = Perm.ALL
            for former, shared in node.pinned:
                perm, outside = perm | former, outside & shared
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
    for node, *_ in applied:
        node.permissions_applied()
    for edge, *_ in edges:
        edge.refresh()


class Pins:
    """Keeps the image locks of nodes while a change may still be undone.

    Otherwise another process could take a lock that a node releases, and the change could not be
    undone.
    """

    def __init__(self, nodes: Iterable[BlockNode]) -> None:
        self._pinned = [(node, node.granted) for node in nodes]
        for node, granted in self._pinned:
            node.pinned.append(granted)

    def release(self) -> None:
        """Release locks that the nodes don't need any more."""
        for node, granted in self._pinned:
            node.pinned.remove(granted)
        update_permissions([node for node, _ in self._pinned])


def _read_only(node: BlockNode, was_writable: bool) -> BlockError:
    if was_writable:
        return BlockError(
            f"Read-only block node '{node.node_name}' cannot support read-write users"
        )
    return BlockError("Block node is read-only")


def _check_size(node: BlockNode, perm: Perm) -> None:
    """Raise BlockError if writes to the last block would make the node longer.

    Only new writers are refused. Writers that are attached already keep their permission.
    """
    if not perm & Perm.RESIZE and node.size % node.limits.request_alignment:
        raise BlockError(
            "Cannot get 'write' permission without 'resize': Image size is not a multiple of "
            "request alignment"
        )


def _refresh_below(
    nodes: Iterable[BlockNode], edges: list[tuple[Edge, Perm, Perm, Perm]]
) -> list[BlockNode]:
    """Update and check all edges below `nodes`, and return the nodes, parents first."""
    order: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node in order:  # reached by two paths: move it behind both
            order.remove(node)
        order.append(node)
        for edge in node.children.values():
            if edge not in edge.node.parents:
                continue
            edges.append((edge, edge.perm, edge.shared, edge.shared_outside))
            derive(edge)
            pending.append(edge.node)
    for edge, *_ in edges:
        check_conflicts(edge)
    return order
