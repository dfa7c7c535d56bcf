# SPDX-License-Identifier: Apache-2.0
"""`blockdev-reopen`: other options and other children for nodes in use, all or nothing.

The drained graph is changed in steps, each with its way back. Whatever may fail comes first
(opening files again, looking at sizes, permissions); then the nodes commit, which can't fail.
Between the first step and the last nothing is awaited, so nobody sees a half-changed graph.

A node's options are replaced as a whole: what the new ones leave out goes back to its default. A
child defined inside its parent is reopened with it, with what its definition says and what it
inherits. A child given by name takes the place of the present one. A backing image may come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from vhostblk.block import inherit
from vhostblk.block.drain import users_of, with_ancestors, with_descendants
from vhostblk.block.edge import Edge
from vhostblk.block.errors import BlockError
from vhostblk.block.permission_update import update_permissions
from vhostblk.block.registry import driver_name
from vhostblk.block.zones import check_zoned_child
from vhostblk.schema.base import UNSET
from vhostblk.schema.qdict import bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vhostblk.block.graph import Graph
    from vhostblk.block.node import BlockNode

#: Members that may be changed in all nodes.
_COMMON = frozenset({"node_name", "discard", "cache", "read_only", "auto_read_only"})
_COMMON_MUTABLE = _COMMON | {"detect_zeroes"}


@dataclass(slots=True)
class Change:
    """What becomes of one node."""

    node: BlockNode
    #: As the user gave them, and with what they leave out.
    given: Any
    options: Any
    #: Names of the nodes that become children, by role; None: there is to be none.
    children: dict[str, str | None] = field(default_factory=dict)

    @property
    def opens_for_writing(self) -> bool:
        """Whether the node is read-only no longer."""
        return not self.options.read_only and self.node.read_only


def plan(graph: Graph, definitions: Iterable[Any]) -> list[Change]:
    """Return the changes to nodes that these options ask for; raises BlockError."""
    changes: dict[BlockNode, Change] = {}
    for given in definitions:
        if given.node_name is UNSET:
            raise BlockError("node-name not specified")
        node = graph.find_exactly(given.node_name)
        _plan_node(changes, node, given, inherit.resolve(given))
    return list(changes.values())


def _plan_node(changes: dict[BlockNode, Change], node: BlockNode, given: Any, options: Any) -> None:
    change = changes[node] = Change(node, given, options)
    if driver_name(options) != node.driver or node.changes_children:
        return  # `_check_options` or `prepare_reopen` refuses it
    for role, edge in node.children.items():
        child, ref = edge.node, _child_ref(options, role)
        inline = child.defined_in is node
        if ref is UNSET:
            if role == inherit.BACKING:
                raise BlockError(f"backing is missing for '{node.node_name}'")
            resolved = inherit.resolve_child(child.given_options, role, options)
            _plan_node(changes, child, child.given_options, resolved)
        elif ref is None:
            if role != inherit.BACKING:
                raise BlockError(f"Cannot change the option '{role}'")
            change.children[role] = None
        elif isinstance(ref, str):
            if ref != child.node_name:
                change.children[role] = ref
            elif inline:
                resolved = inherit.resolve_child(child.given_options, role, options)
                _plan_node(changes, child, child.given_options, resolved)
        elif not inline:
            raise BlockError(f"Cannot change the option '{role}.driver'")
        else:
            if ref.node_name not in (UNSET, child.node_name):
                raise BlockError("Cannot change the option 'node-name'")
            _plan_node(changes, child, ref, inherit.resolve_child(ref, role, options))
    if node.supports_backing and inherit.BACKING not in node.children:
        _plan_backing(change)


def _plan_backing(change: Change) -> None:
    """Plan for a node that has no backing image now; to have one, it has to be named."""
    node, ref = change.node, change.options.backing
    if ref is UNSET:
        if node.auto_backing_name:
            raise BlockError(f"backing is missing for '{node.node_name}'")
    elif isinstance(ref, str):
        change.children[inherit.BACKING] = ref
    elif ref is not None:
        raise BlockError(f"Cannot change the option '{inherit.BACKING}.driver'")


def plan_read_only(node: BlockNode, *, read_only: bool) -> list[Change]:
    """Return the changes that make a node read-only, or writable again, and nothing else.

    What is defined inside it follows, as far as it was not said otherwise there.
    """
    changes = [Change(node, node.given_options, replace(node.options, read_only=read_only))]
    for change in changes:
        for role, edge in change.node.children.items():
            child = edge.node
            if child.defined_in is not change.node:
                continue
            resolved = inherit.resolve_child(child.given_options, role, change.options)
            if resolved.read_only != child.read_only:
                options = replace(child.options, read_only=resolved.read_only)
                changes.append(Change(child, child.given_options, options))
    return changes


def _child_ref(options: Any, role: str) -> Any:
    """Return what options say of a child; "children.1" is an item of a list."""
    name, _, index = role.partition(".")
    ref = getattr(options, name.replace("-", "_"))
    return ref[int(index)] if index else ref


def execute(graph: Graph, changes: list[Change]) -> list[BlockNode]:
    """Make the changes, and return children that were replaced; drained and flushed.

    Raises BlockError, and then nothing has changed.
    """
    nodes = [change.node for change in changes]
    prepared: list[BlockNode] = []
    undo: list[Callable[[], None]] = []
    replaced: list[BlockNode] = []
    try:
        for change in changes:
            _check_options(change)
            change.node.prepare_reopen(change.options)
            prepared.append(change.node)
            replaced += _replace_children(graph, change, undo)
        writable = _take_options(changes, undo)
        refresh(nodes)
        for node in nodes:
            node.check_children()
        update_permissions([*nodes, *replaced], writable)
    except BaseException:
        for step in reversed(undo):
            step()
        for node in prepared:
            node.abort_reopen()
        refresh(nodes)
        raise
    _commit(changes)
    for old in replaced:
        old.defined_in = None
    for backend in users_of(nodes):
        backend.child_resized()
    return replaced


def _check_options(change: Change) -> None:
    """Raise BlockError where an option is not for change."""
    inherit.check_options(change.options)
    node, new, old = change.node, change.options, change.node.options
    fixed = list(_members_but(node, _COMMON_MUTABLE | node.mutable_options))
    changeable = _COMMON_MUTABLE | (node.mutable_options - node.kept_options)
    for name, wire_name, default in _members_but(node, changeable):
        value = getattr(new, name, default)
        if value == default and getattr(old, name) != default:
            raise BlockError(f"Option '{wire_name}' cannot be reset to its default value")
    if driver_name(new) != node.driver:
        raise BlockError("Cannot change the option 'driver'")
    for name, wire_name, _ in fixed:
        if getattr(new, name) != getattr(old, name):
            raise BlockError(f"Cannot change the option '{wire_name}'")


def _members_but(node: BlockNode, left_out: frozenset[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, wire name and default of a node's options, without children and `left_out`.

    They are in the order in which QEMU looks at them.
    """
    children = {role.partition(".")[0] for role in node.children}
    if node.supports_backing:
        children.add(inherit.BACKING)
    members = msgspec.structs.fields(node.options)
    for info in sorted(members, key=lambda member: bucket(member.encode_name)):
        if info.name in left_out or info.encode_name in children:
            continue
        default = inherit.default_of(info.name, info.default)
        yield info.name, info.encode_name, default


def _replace_children(
    graph: Graph, change: Change, undo: list[Callable[[], None]]
) -> list[BlockNode]:
    """Give a node its new children; return those that it had instead."""
    node, replaced = change.node, []
    for role, name in change.children.items():
        new = None if name is None else graph.find(name)
        if new is not None:
            _check_child(node, role, new)
        edge = node.children.get(role)
        if edge is not None:
            if edge.frozen:
                raise BlockError(
                    f"Cannot change frozen '{role}' link from '{node.node_name}' to "
                    f"'{edge.node.node_name}'"
                )
            replaced.append(edge.node)
        if edge is not None and new is not None:
            undo.append(moved(edge, new))
        elif edge is not None:
            undo.append(_backing_removed(node, edge))
        elif new is not None:
            undo.append(_backing_added(node, new))
    return replaced


def _check_child(node: BlockNode, role: str, new: BlockNode) -> None:
    name = new.node_name
    if node in with_descendants([new]):
        raise BlockError(
            f"Making '{name}' a {role} child of '{node.node_name}' would create a cycle"
        )
    if node.active and not new.active:
        raise BlockError(f"Inactive '{name}' can't be a {role} child of active '{node.node_name}'")
    check_zoned_child(node, new)


def _backing_removed(node: BlockNode, edge: Edge) -> Callable[[], None]:
    """Take the backing image away from a node; return the way back."""
    place = edge.node.parents.index(edge)

    def undo() -> None:
        edge.node.parents.insert(place, edge)
        node.children[inherit.BACKING] = edge
        node.backing_changed()

    edge.node.parents.remove(edge)
    del node.children[inherit.BACKING]
    node.backing_changed()
    return undo


def _backing_added(node: BlockNode, new: BlockNode) -> Callable[[], None]:
    """Put a node on a backing image; return the way back."""
    edge = Edge(node, inherit.BACKING, new)

    def undo() -> None:
        new.parents.remove(edge)
        del node.children[inherit.BACKING]
        node.backing_changed()

    new.parents.append(edge)
    node.children[inherit.BACKING] = edge
    node.backing_changed()
    return undo


def moved(edge: Edge, new: BlockNode) -> Callable[[], None]:
    """Let an edge lead to another node; return the way back.

    The edge itself stays, as its parent may hold on to its methods.
    """
    old = edge.node
    place = old.parents.index(edge)
    granted = (edge.perm, edge.shared, edge.shared_outside)

    def undo() -> None:
        new.parents.remove(edge)
        old.parents.insert(place, edge)
        edge.node = old
        edge.perm, edge.shared, edge.shared_outside = granted

    old.parents.remove(edge)
    new.parents.append(edge)
    edge.node = new
    return undo


def _take_options(changes: list[Change], undo: list[Callable[[], None]]) -> frozenset[BlockNode]:
    """Put the new options in force; return the nodes that thereby become read-only."""
    locked = []
    for change in changes:
        node, old, given = change.node, change.node.options, change.node.given_options
        if not node.read_only and change.options.read_only:
            locked.append(node)

        def restore(node: BlockNode = node, old: Any = old, given: Any = given) -> None:
            node.given_options = given
            node.take_options(old)

        undo.append(restore)
        node.given_options = change.given
        # An inline child keeps its name, also one that was made up.
        node.take_options(change.options)
    return frozenset(locked)


def _commit(changes: list[Change]) -> None:
    for change in reversed(changes):
        change.node.commit_reopen()
    refresh([change.node for change in changes])


def refresh(nodes: list[BlockNode]) -> None:
    """Have nodes and all above them take over limits and options from below."""
    for node in with_ancestors(nodes):
        for edge in node.children.values():
            edge.refresh()
        node.refresh_limits()
        for edge in node.parents:
            edge.refresh()
