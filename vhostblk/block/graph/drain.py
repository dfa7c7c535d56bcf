# SPDX-License-Identifier: Apache-2.0
"""Drained sections of parts of the graph: no requests are in flight to the nodes.

Requests enter the graph only at block backends, so a drained section stops the backends above its
nodes. All backends stop before any is waited for. A failure in one doesn't affect the others.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vhostblk.block.graph.node import BlockNode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.graph.backend import BlockBackend


logger = logging.getLogger(__name__)


def with_ancestors(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return nodes and all their ancestors, children before parents."""
    order: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node in order:  # also an ancestor of another node
            order.remove(node)
        order.append(node)
        pending += [edge.parent for edge in node.parents if isinstance(edge.parent, BlockNode)]
    return order


def with_descendants(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return nodes and all their descendants, parents before children."""
    found: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node not in found:
            found.append(node)
            pending += [edge.node for edge in node.children.values()]
    return found


def users_of(nodes: Iterable[BlockNode]) -> list[BlockBackend]:
    """Return the block backends whose requests may reach one of these nodes."""
    found: dict[BlockBackend, None] = {}
    for node in with_ancestors(nodes):
        for edge in node.parents:
            if not isinstance(edge.parent, BlockNode):
                found[edge.parent] = None
    return list(found)


class DrainedSection:
    """The quiesced block backends above some nodes. Backends that attach later are quiesced too."""

    def __init__(self, nodes: Iterable[BlockNode]) -> None:
        self._nodes = list(nodes)
        self._held: list[BlockBackend] = []

    def hold_users(self) -> None:
        """Quiesce all backends."""
        for backend in users_of(self._nodes):
            if backend not in self._held:
                self._held.append(backend)
                backend.quiesce()

    async def wait(self) -> None:
        """Wait until the requests in flight have completed."""
        for backend in list(self._held):
            await backend.drain()
        for node in with_descendants(with_ancestors(self._nodes)):
            await node.settle()

    def release_users(self) -> None:
        """Resume all backends, even if one of them fails."""
        for backend in reversed(self._held):
            try:
                backend.resume()
            except Exception:
                logger.exception("resuming '%s' failed", backend.name)
