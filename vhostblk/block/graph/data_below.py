# SPDX-License-Identifier: Apache-2.0
"""Nodes whose data below changes with the graph.

A filter shows the data of its primary child, and so does a `raw` node without an offset or a size.
Inserting or removing such a node changes no data for the nodes above. Any other node shows data of
its own, made from the data of its children. The data of a node before and after a change are
compared as *views*: nested tuples of nodes and of those options that select a part of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vhostblk.block.graph.drain import with_ancestors
from vhostblk.block.graph.node import BlockNode

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from vhostblk.block.graph.edge import Edge


@dataclass(slots=True)
class Planned:
    """The options and children that a node will have."""

    options: Any
    #: Children to be replaced, by role; None: removed; `object()`: unknown.
    children: Mapping[str, object | None] = field(default_factory=dict)


class Views:
    """The views of nodes, in the present graph or in the planned one."""

    def __init__(self, planned: Mapping[BlockNode, Planned]) -> None:
        self._planned = planned
        self._known: dict[BlockNode, Hashable] = {}

    def children(self, node: BlockNode) -> dict[str, Any]:
        """Return the children by role."""
        found: dict[str, Any] = {role: edge.node for role, edge in node.children.items()}
        if node in self._planned:
            found.update(self._planned[node].children)
        return {role: child for role, child in found.items() if child is not None}

    def below(self, node: BlockNode) -> dict[str, Hashable]:
        """Return the views of the children by role."""
        return {role: self.of(child) for role, child in self.children(node).items()}

    def of(self, node: Any) -> Hashable:
        """Return the view of a node."""
        if type(node) is object:
            return node
        if node not in self._known:
            self._known[node] = node  # ends a cycle; cycles are refused later
            below = self.below(node)
            if node.primary_role in below and node.shows_child(self._options(node)):
                self._known[node] = below[node.primary_role]
            else:
                self._known[node] = (node, self._part(node), tuple(below.items()))
        return self._known[node]

    def _options(self, node: BlockNode) -> Any:
        planned = self._planned[node].options if node in self._planned else node.options
        return planned if type(planned) is type(node.options) else node.options  # refused later

    def _part(self, node: BlockNode) -> Hashable:
        options = self._options(node)
        return tuple(getattr(options, name) for name in sorted(node.data_options))


def nodes_with_other_data(
    planned: Mapping[BlockNode, Planned],
) -> dict[BlockNode, frozenset[str]]:
    """Return the nodes that will show other data, each with the roles of the children concerned.

    A node that only selects another part of the same data has no such children. Nodes come before
    their parents.
    """
    before, after = Views({}), Views(planned)
    found: dict[BlockNode, frozenset[str]] = {}
    for node in with_ancestors(planned):
        old, new = before.below(node), after.below(node)
        roles = {role for role in old.keys() | new.keys() if old.get(role) != new.get(role)}
        if roles or before.of(node) != after.of(node):
            found[node] = frozenset(roles)
    return found


def who_relies_on(edges: Iterable[Edge]) -> BlockNode | None:
    """Return a node that keeps state derived from the data of these edges, or None."""
    pending = list(edges)
    for edge in pending:
        parent = edge.parent
        if isinstance(parent, BlockNode):
            if edge.role in parent.remembered_roles:
                return parent
            pending += parent.parents
    return None
