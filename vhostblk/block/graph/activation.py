# SPDX-License-Identifier: Apache-2.0
"""Active and inactive nodes: handing an image over to another process and back.

An inactive node takes no permissions of what lies below and shares them all, so its image locks
are gone; its users may only read. A child of an active node is active, so what is activated takes
all below along, and what is inactivated takes along what has no active user left.
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
    """A user needs the node active; the text is the reason only."""


def may_stay(user: BlockBackend) -> bool:
    """Tell whether a user can be on an inactive node: it only reads, or waits for an active one."""
    return user.allow_inactive or not user.perm & ~Perm.CONSISTENT_READ


def has_active_parent(node: BlockNode) -> bool:
    """Tell whether the node is below an active one."""
    return any(isinstance(edge.parent, BlockNode) and edge.parent.active for edge in node.parents)


def to_inactivate(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return what becomes inactive when `nodes` do, parents first; raises InactivationError."""
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
            continue  # if its last active parent is chosen yet, that one brings it back
        for edge in node.parents:
            if not isinstance(edge.parent, BlockNode) and not may_stay(edge.parent):
                raise InactivationError(reason(errno.EPERM))
        chosen.append(node)
        pending += [edge.node for edge in node.children.values()]
    return chosen


def to_activate(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return what becomes active when `nodes` do, parents first."""
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
    """Make nodes inactive; drained, flushed, and checked by `to_inactivate`. Never fails."""
    for node in nodes:
        node.active = False
        # The image has them; another process may change them there.
        node.bitmaps = [each for each in node.bitmaps if not each.persistent]
        node_bitmaps.refresh(node)
        for edge in _backend_edges(node):
            edge.perm, edge.shared, edge.shared_outside = Perm.NONE, Perm.ALL, Perm.ALL
    update_permissions(nodes)
    _refresh(nodes)


def activate(nodes: list[BlockNode]) -> None:
    """Make nodes active, all or none; drained. Raises BlockError."""
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
    """Give a block backend's edge what it asks for, as far as the node is active."""
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
