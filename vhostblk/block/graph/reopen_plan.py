# SPDX-License-Identifier: Apache-2.0
"""The plan of `blockdev-reopen`, and its rules: QEMU's rules, order and messages.

A node's options are replaced as a whole: omitted options return to their defaults. A child defined
inside its parent is reopened with it, with the options of its definition and those that it
inherits. A child given by name replaces the present one, if the driver allows that for its role. A
backing image may be added and removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from vhostblk.block.errors import BlockError, NodeNotFoundError, NoNode
from vhostblk.block.graph import inherit
from vhostblk.block.graph.backing_name import auto_backing_name, supports_backing
from vhostblk.block.graph.data_below import Planned
from vhostblk.block.registry import driver_name
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.qdict import bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode

#: Members that may be changed in all nodes.
_COMMON = frozenset({"node_name", "discard", "cache", "read_only", "auto_read_only"})
_COMMON_MUTABLE = _COMMON | {"detect_zeroes"}


@dataclass(slots=True)
class Change:
    """The changes to one node."""

    node: BlockNode
    #: The options as the user gave them, and with values for omitted ones.
    given: Any
    options: Any
    #: Omitted options, and the children, stay as they are.
    kept: bool = False
    #: Names of the new children, by role; None: the child is removed.
    children: dict[str, str | None] = field(default_factory=dict)

    @property
    def other_driver(self) -> bool:
        """Whether the options are for another driver, which is refused."""
        return driver_name(self.options) != self.node.driver

    @property
    def opens_for_writing(self) -> bool:
        """Whether the node changes from read-only to writable."""
        return not self.options.read_only and self.node.read_only


def plan(graph: Graph, definitions: Iterable[Any]) -> list[Change]:
    """Return the changes to nodes that these definitions ask for; raises BlockError.

    If a node is given twice, options that the later definition omits come from the former.
    """
    changes: dict[BlockNode, Change] = {}
    for given in definitions:
        if given.node_name is UNSET:
            raise BlockError("node-name not specified")
        node = graph.find(given.node_name, NoNode.NODE_NAME)
        _plan_node(changes, node, given, inherit.resolve)
    return list(changes.values())


def _plan_node(
    changes: dict[BlockNode, Change],
    node: BlockNode,
    given: Any,
    resolve: Callable[[Any], Any],
    *,
    kept: bool = False,
) -> None:
    former = changes.get(node)
    if former is not None:
        given, kept = _joined(given, former.given), kept and former.kept
    options = resolve(given)
    change = changes[node] = Change(node, given, options, kept)
    if not node.reopens:
        return  # `check_options` refuses it
    for role, edge in reversed(node.children.items()):
        child, ref = edge.node, _child_ref(options, role)
        if child.defined_in is not node or change.other_driver:
            continue
        if same := kept or ref in (UNSET, child.node_name):
            ref = child.given_options
        if ref is not None and not isinstance(ref, str):
            inherited = partial(inherit.resolve_child, role=role, parent=options)
            _plan_node(changes, child, ref, inherited, kept=same)
    for role in _exchangeable(node) if not kept else ():
        present, ref = node.children.get(role), _child_ref(options, role)
        if ref is None and present is not None:
            change.children[role] = None
        elif isinstance(ref, str) and (present is None or ref != present.node.node_name):
            change.children[role] = ref


def _joined(later: Any, former: Any) -> Any:
    """Return a definition, with omitted options taken from an earlier one of the same node.

    Definitions of children are not merged, as each child has its own change.
    """
    if type(later) is not type(former):
        return later  # refused later
    changes: dict[str, Any] = {}
    for info in msgspec.structs.fields(later):
        value, before = getattr(later, info.name), getattr(former, info.name)
        if isinstance(value, BlockdevOptions) or isinstance(before, BlockdevOptions):
            continue
        if isinstance(value, msgspec.Struct):
            changes[info.name] = _joined(value, before)
        elif not info.required and value == _default(info):
            changes[info.name] = before
    return replace(later, **changes)


def _exchangeable(node: BlockNode) -> list[str]:
    """Return the roles whose child may be replaced, in QEMU's order."""
    roles = sorted(node.exchangeable_roles & node.children.keys())
    return [inherit.BACKING, *roles] if supports_backing(node) else roles


def plan_read_only(node: BlockNode, *, read_only: bool) -> list[Change]:
    """Return the changes that make a node read-only or writable, and nothing else.

    Children defined inside it follow, unless their own options say otherwise.
    """
    options = replace(node.options, read_only=read_only)
    changes = [Change(node, node.given_options, options, kept=True)]
    for change in changes:
        for role, edge in change.node.children.items():
            child = edge.node
            if child.defined_in is not change.node:
                continue
            resolved = inherit.resolve_child(child.given_options, role, change.options)
            if resolved.read_only != child.read_only:
                options = replace(child.options, read_only=resolved.read_only)
                changes.append(Change(child, child.given_options, options, kept=True))
    return changes


def planned_data(graph: Graph, changes: Iterable[Change]) -> dict[BlockNode, Planned]:
    """Return those changes that may change the data of nodes."""
    return {
        change.node: Planned(
            change.options,
            {role: _find(graph, name) for role, name in change.children.items()},
        )
        for change in changes
    }


def _find(graph: Graph, name: str | None) -> object | None:
    try:
        return None if name is None else graph.find(name)
    except NodeNotFoundError:
        return object()  # refused later


def _child_ref(options: Any, role: str) -> Any:
    """Return the options' reference to the child `role`; "children.1" is an item of a list."""
    name, _, index = role.partition(".")
    ref: Any = getattr(options, name.replace("-", "_"), UNSET)
    if not index:
        return ref
    return ref[int(index)] if int(index) < len(ref) else UNSET


# Rules for changes.


def check_options(change: Change) -> None:
    """Raise BlockError if the driver can't reopen, or an option has no default to return to."""
    inherit.check_options(change.options)
    node, new, old = change.node, change.options, change.node.options
    if not node.reopens:
        raise BlockError(
            f"Block format '{node.driver}' used by node '{node.node_name}' does not support "
            "reopening files"
        )
    changeable = _COMMON_MUTABLE | (node.mutable_options - node.kept_options)
    for info, default in _members(old, changeable | _child_members(node)):
        value = getattr(new, info.name, UNSET)
        if value in (UNSET, default) and getattr(old, info.name) != default:
            raise BlockError(f"Option '{info.encode_name}' cannot be reset to its default value")


def check_backing_given(change: Change) -> None:
    """Raise BlockError if the options don't name the backing image, and must."""
    node = change.node
    if (
        supports_backing(node)
        and getattr(change.options, inherit.BACKING, UNSET) is UNSET
        and not change.kept
        and (inherit.BACKING in node.children or auto_backing_name(node))
    ):
        raise BlockError(f"backing is missing for '{node.node_name}'")


def check_unchanged(change: Change) -> None:
    """Raise BlockError for the first option, in QEMU's order, that differs and can't be changed.

    Children in exchangeable roles have been replaced already.
    """
    node, new, old = change.node, change.options, change.node.options
    if change.other_driver:
        names = ["driver", *_foreign_names(change)]
        raise BlockError(f"Cannot change the option '{min(names, key=bucket)}'")
    names = [] if change.given.node_name in (UNSET, node.node_name) else ["node-name"]
    for info, _ in _members(old, _COMMON_MUTABLE | node.mutable_options | _child_members(node)):
        value = getattr(new, info.name)
        if value != getattr(old, info.name):
            names += _flat_names(info.encode_name, value)
    for role in node.children if not change.kept else ():
        names += _flat_names(role, _foreign_child(node, role, _child_ref(new, role)))
    if supports_backing(node) and inherit.BACKING not in node.children and not change.kept:
        names += _flat_names(inherit.BACKING, new.backing or UNSET)
    if names:
        raise BlockError(f"Cannot change the option '{min(names, key=bucket)}'")


def _foreign_names(change: Change) -> Iterator[str]:
    """Yield the names of the given options if they are for another driver."""
    left_out = _COMMON_MUTABLE | change.node.mutable_options
    for info, default in _members(change.options, left_out):
        value = getattr(change.given, info.name)
        is_child = info.name in (inherit.BACKING, inherit.FILE)
        if value != default and not (is_child and (value is None or isinstance(value, str))):
            yield from _flat_names(info.encode_name, value)


def _foreign_child(node: BlockNode, role: str, ref: Any) -> Any:
    """Return the options' reference `ref` to a child if it isn't the present child; else UNSET."""
    child = node.children[role].node
    if isinstance(ref, str):
        return UNSET if ref == child.node_name else ref
    return UNSET if child.defined_in is node else ref


def _flat_names(name: str, value: Any) -> list[str]:
    """Return the flattened names of an option, with dots for objects and lists; [] if unset."""
    if value is UNSET:
        return []
    parts: list[tuple[object, Any]]
    if isinstance(value, msgspec.Struct):
        kind = value.__struct_config__
        parts = [] if kind.tag_field is None else [(kind.tag_field, kind.tag)]
        for info in msgspec.structs.fields(value):
            part = getattr(value, info.name)
            if info.required or part != info.default:
                parts.append((info.encode_name, part))
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        return [name]
    return [flat for key, part in parts for flat in _flat_names(f"{name}.{key}", part)]


def _child_members(node: BlockNode) -> frozenset[str]:
    """Return the members of a node's options that name or define its children."""
    roles = [*node.children, *([inherit.BACKING] if supports_backing(node) else [])]
    return frozenset(role.partition(".")[0].replace("-", "_") for role in roles)


def _members(options: Any, left_out: frozenset[str]) -> Iterator[tuple[Any, Any]]:
    """Yield the members of options and their defaults, in QEMU's order, without `left_out`."""
    members = msgspec.structs.fields(options)
    for info in sorted(members, key=lambda member: bucket(member.encode_name)):
        if info.name not in left_out:
            yield info, inherit.default_of(info.name, _default(info))


def _default(info: msgspec.structs.FieldInfo) -> Any:
    made = info.default_factory is not msgspec.NODEFAULT
    return info.default_factory() if made else info.default
