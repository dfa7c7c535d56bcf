# SPDX-License-Identifier: Apache-2.0
"""What `blockdev-reopen` is to change, and what it may: the rules, in QEMU's order and words.

A node's options are replaced as a whole: what the new ones leave out goes back to its default. A
child defined inside its parent is reopened with it, with what its definition says and what it
inherits. A child given by name takes the place of the present one, where the driver allows that for
its role. A backing image may come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from vhostblk.block import inherit
from vhostblk.block.data_below import Planned
from vhostblk.block.errors import BlockError, NodeNotFoundError
from vhostblk.block.registry import driver_name
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import BlockdevOptions
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
    #: Options that are not given stay what they are, and so do the children.
    kept: bool = False
    #: Names of the nodes that become children, by role; None: there is to be none.
    children: dict[str, str | None] = field(default_factory=dict)

    @property
    def other_driver(self) -> bool:
        """Whether the options are those of another driver, which is refused."""
        return driver_name(self.options) != self.node.driver

    @property
    def opens_for_writing(self) -> bool:
        """Whether the node is read-only no longer."""
        return not self.options.read_only and self.node.read_only


def plan(graph: Graph, definitions: Iterable[Any]) -> list[Change]:
    """Return the changes to nodes that these options ask for; raises BlockError.

    Where a node is given twice, the later definition has what it leaves out from the former.
    """
    changes: dict[BlockNode, Change] = {}
    for given in definitions:
        if given.node_name is UNSET:
            raise BlockError("node-name not specified")
        node = graph.find_exactly(given.node_name)
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
    """Return a definition with what it leaves out taken from a former one of the same node.

    Definitions of children are not taken over: the children are among the changes themselves.
    """
    if type(later) is not type(former):
        return later  # which is refused
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
    """Return the roles whose child may be another one, in the order in which QEMU takes them."""
    roles = sorted(node.exchangeable_roles & node.children.keys())
    return [inherit.BACKING, *roles] if node.supports_backing else roles


def plan_read_only(node: BlockNode, *, read_only: bool) -> list[Change]:
    """Return the changes that make a node read-only, or writable again, and nothing else.

    What is defined inside it follows, as far as it was not said otherwise there.
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
    """Return the changes as far as they may change what data nodes show."""
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
    """Return what options say of a child; "children.1" is an item of a list."""
    name, _, index = role.partition(".")
    ref: Any = getattr(options, name.replace("-", "_"), UNSET)
    if not index:
        return ref
    return ref[int(index)] if int(index) < len(ref) else UNSET


# What may be changed.


def check_options(change: Change) -> None:
    """Raise BlockError where a driver can't be reopened, or lacks an option that has no default."""
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
    """Raise BlockError where the options have to say what the node lies on, and don't."""
    node = change.node
    if (
        node.supports_backing
        and getattr(change.options, inherit.BACKING, UNSET) is UNSET
        and not change.kept
        and (inherit.BACKING in node.children or node.auto_backing_name)
    ):
        raise BlockError(f"backing is missing for '{node.node_name}'")


def check_unchanged(change: Change) -> None:
    """Raise BlockError where an option differs that is not for change, the first in QEMU's order.

    The children of exchangeable roles have been replaced by now.
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
    if node.supports_backing and inherit.BACKING not in node.children and not change.kept:
        names += _flat_names(inherit.BACKING, new.backing or UNSET)
    if names:
        raise BlockError(f"Cannot change the option '{min(names, key=bucket)}'")


def _foreign_names(change: Change) -> Iterator[str]:
    """Yield the names of what is given of another driver's options."""
    left_out = _COMMON_MUTABLE | change.node.mutable_options
    for info, default in _members(change.options, left_out):
        value = getattr(change.given, info.name)
        is_child = info.name in (inherit.BACKING, "file")
        if value != default and not (is_child and (value is None or isinstance(value, str))):
            yield from _flat_names(info.encode_name, value)


def _foreign_child(node: BlockNode, role: str, ref: Any) -> Any:
    """Return what options say of a child where it isn't the present one; else UNSET."""
    child = node.children[role].node
    if isinstance(ref, str):
        return UNSET if ref == child.node_name else ref
    return UNSET if child.defined_in is node else ref


def _flat_names(name: str, value: Any) -> list[str]:
    """Return the names that an option has once objects and lists are flattened; none: not set."""
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
    roles = [*node.children, *([inherit.BACKING] if node.supports_backing else [])]
    return frozenset(role.partition(".")[0].replace("-", "_") for role in roles)


def _members(options: Any, left_out: frozenset[str]) -> Iterator[tuple[Any, Any]]:
    """Yield the members of options but some, and their defaults, in QEMU's order."""
    members = msgspec.structs.fields(options)
    for info in sorted(members, key=lambda member: bucket(member.encode_name)):
        if info.name not in left_out:
            yield info, inherit.default_of(info.name, _default(info))


def _default(info: msgspec.structs.FieldInfo) -> Any:
    made = info.default_factory is not msgspec.NODEFAULT
    return info.default_factory() if made else info.default
