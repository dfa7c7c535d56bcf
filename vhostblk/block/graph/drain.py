# SPDX-License-Identifier: Apache-2.0
"""Drained sections of parts of the graph: nothing that uses a node does I/O meanwhile.

Requests enter the graph at block backends only, so the backends above a node are what has to stop.
Those that stop first wait for those that stop last; none fails.
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
    """Return nodes and all that lie above them, what is used before what uses it."""
    order: list[BlockNode] = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        if node in order:  # above another one, too
            order.remove(node)
        order.append(node)
        pending += [edge.parent for edge in node.parents if isinstance(edge.parent, BlockNode)]
    return order


def with_descendants(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Return nodes and all that they use, users first."""
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
    """The block backends above some nodes, made to stop. Those that come later stop too."""

    def __init__(self, nodes: Iterable[BlockNode]) -> None:
        self._nodes = list(nodes)
        self._held: list[BlockBackend] = []

    def hold_users(self) -> None:
        """Have all users start no more requests."""
        for backend in users_of(self._nodes):
            if backend not in self._held:
                self._held.append(backend)
                backend.quiesce()

    async def wait(self) -> None:
        """Wait until what they have started is done."""
        for backend in list(self._held):
            await backend.drain()
        for node in with_descendants(with_ancestors(self._nodes)):
            await node.settle()

    def release_users(self) -> None:
        """Let them go on, whatever happens to one of them."""
        for backend in reversed(self._held):
            try:
                backend.resume()
            except Exception:
                logger.exception("'%s' can't go on", backend.name)
