# SPDX-License-Identifier: Apache-2.0
"""Activation and inactivation of nodes: handing an image over to another process and back.

An inactive node takes no permissions on its children and shares all, so it holds no image locks.
Its users may only read. The children of an active node are active. So activation includes all nodes
below, and inactivation includes the nodes below that have no active parent left.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.drain import users_of
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permission_update import check_conflicts, update_permissions
from vhostblk.block.graph.permissions import Perm, names_of
from vhostblk.errors import reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.edge import Edge


class InactivationError(BlockError):
    """A user needs the node to be active; the text is only the reason."""


def may_stay(user: BlockBackend) -> bool:
    """Return whether a user may stay on an inactive node: it reads only, or allows inactivity."""
    return user.allow_inactive or not user.perm & ~Perm.CONSISTENT_READ


def has_active_parent(node: BlockNode) -> bool:
    """Return whether the node has an active parent."""
    return any(isinstance(edge.parent, BlockNode) and edge.parent.active for edge in node.parents)


def to_inactivate(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return the nodes to inactivate with `nodes`, parents first; raises InactivationError."""
    chosen: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if not node.active or node in chosen:
            continue
        if any(
            isinstance(edge.parent, BlockNode) and edge.parent.active and edge.parent not in chosen
            for edge in node.parents
        ):
            continue  # its last active parent may follow, and then brings it back
        for edge in node.parents:
            if not isinstance(edge.parent, BlockNode) and not may_stay(edge.parent):
                raise InactivationError(reason(errno.EPERM))
        chosen.append(node)
        pending += [edge.node for edge in node.children.values()]
    return chosen


def to_activate(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return the nodes that become active with `nodes`, parents first."""
    chosen: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node in chosen:
            chosen.remove(node)
        chosen.append(node)
        pending += [edge.node for edge in node.children.values()]
    return [node for node in chosen if not node.active]


def inactivate(nodes: list[BlockNode]) -> None:
    """Make nodes inactive: drained, flushed, and checked by `to_inactivate`. Never fails."""
    for node in nodes:
        node.active = False
        # Persistent bitmaps are in the image, where another process may change them.
        node.bitmaps = [each for each in node.bitmaps if not each.persistent]
        node_bitmaps.refresh(node)
        for edge in _backend_edges(node):
            edge.perm, edge.shared, edge.shared_outside = Perm.NONE, Perm.ALL, Perm.ALL
    update_permissions(nodes)
    _refresh(nodes)


def activate(nodes: list[BlockNode]) -> None:
    """Make all nodes active, or none; raises BlockError. They are drained."""
    try:
        for node in nodes:
            node.active = True
            for edge in _backend_edges(node):
                grant_backend(edge)
        for node in nodes:
            for edge in _backend_edges(node):
                check_conflicts(edge)
        update_permissions(nodes)
        for node in reversed(nodes):
            node.refresh_image()
    except BaseException:
        inactivate(nodes)
        raise
    _refresh(nodes)
    for backend in users_of(nodes):
        backend.child_resized()


def grant_backend(edge: Edge) -> None:
    """Give a block backend's edge its permissions, or none while the node is inactive."""
    backend = edge.parent
    assert not isinstance(backend, BlockNode)
    if edge.node.active:
        edge.perm, edge.shared = backend.perm, backend.shared
        edge.shared_outside = backend.shared_outside
    elif may_stay(backend):
        edge.perm, edge.shared, edge.shared_outside = Perm.NONE, Perm.ALL, Perm.ALL
    else:
        names = names_of(backend.perm)
        raise BlockError(f"Permission '{names}' unavailable on inactive node")


def _backend_edges(node: BlockNode) -> list[Edge]:
    return [edge for edge in node.parents if not isinstance(edge.parent, BlockNode)]


def _refresh(nodes: list[BlockNode]) -> None:
    for node in nodes:
        for edge in node.parents:
            edge.refresh()
