# SPDX-License-Identifier: Apache-2.0
"""The options that recreate a daemon's current objects, nodes and exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.block.graph import inherit
from vhostblk.block.graph.in_memory import KeptInMemory
from vhostblk.handover.errors import HandoverError
from vhostblk.schema.base import UNSET

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.daemon import Daemon


def objects(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the definitions of all objects."""
    return [found.definition() for found in daemon.objects.values()]


def exports(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the definitions of all exports; raises HandoverError if they are changing."""
    for export_id in daemon.exports:
        if daemon.is_shutting_down(export_id):
            raise HandoverError(f"export '{export_id}' is being removed")
    return [
        {
            **msgspec.to_builtins(daemon.export_options(export_id)),
            "node-name": export.backend.node.node_name,  # it changes with a snapshot
        }
        for export_id, export in daemon.exports.items()
    ]


def blockdevs(daemon: Daemon) -> list[dict[str, Any]]:
    """Return the definitions of the nodes that the user added, children first.

    Raises HandoverError if these definitions would not recreate the graph.
    """
    graph = daemon.graph
    for job in daemon.jobs:
        raise HandoverError(f"job '{job.id}' is not finished")
    exported = {export.backend for export in daemon.exports.values()}
    for backend in graph.backends:
        if backend not in exported:
            raise HandoverError(f"{backend.description} uses node '{backend.node.node_name}'")
        if not graph.is_owned(backend.node):  # it is removed with its user, as after a snapshot
            raise HandoverError(f"node '{backend.node.node_name}' was not added by 'blockdev-add'")
    ordered: dict[str, BlockNode] = {}
    for node in graph:
        _check(graph, node)
        if graph.is_owned(node):
            _put(graph, node, ordered)
    return [_definition(graph, node) for node in ordered.values()]


def _definition(graph: Graph, node: BlockNode) -> dict[str, Any]:
    """Return a node's options, with the names of its current children."""
    plain: dict[str, Any] = msgspec.to_builtins(node.options)
    for role, edge in node.children.items():
        if "." not in role and graph.is_owned(edge.node):
            plain[role] = edge.node.node_name
    return plain


def _put(graph: Graph, node: BlockNode, ordered: dict[str, BlockNode]) -> None:
    """Insert a node after its children."""
    for edge in node.children.values():
        _put(graph, edge.node, ordered)
    if graph.is_owned(node):
        ordered.setdefault(node.node_name, node)


def _check(graph: Graph, node: BlockNode) -> None:
    """Raise HandoverError if opening the node again would give a different one."""
    name = node.node_name
    if not node.active:
        raise HandoverError(f"node '{name}' is inactive")
    if node.write_threshold:
        raise HandoverError(f"node '{name}' has a write threshold")
    if isinstance(node, KeptInMemory) and (kept := node.only_in_memory):
        raise HandoverError(f"node '{name}' keeps {kept} in memory")
    for bitmap in node.bitmaps:
        if not bitmap.persistent:
            raise HandoverError(f"node '{name}' has a bitmap in memory: '{bitmap.name}'")
    for role, edge in node.children.items():
        child, reference = edge.node, _reference(node.options, role)
        if graph.is_owned(child) and "." not in role and hasattr(node.options, _member(role)):
            continue
        if isinstance(reference, str):
            same = reference == child.node_name
        else:
            same = child.defined_in is node and (
                reference is UNSET or _same(child, role, reference, node.options)
            )
        if not same:
            raise HandoverError(
                f"node '{name}': its child '{role}' is '{child.node_name}', which its options "
                "don't name"
            )


def _member(role: str) -> str:
    return role.replace("-", "_")


def _reference(options: Any, role: str) -> Any:
    """Return the child in a node's options; UNSET if only the image names it."""
    name, _, index = role.partition(".")
    value = getattr(options, _member(name), UNSET)
    if index.isdecimal() and isinstance(value, list):
        return value[int(index)] if int(index) < len(value) else None
    return value


def _same(child: BlockNode, role: str, reference: Any, parent: Any) -> bool:
    """Return whether an inline child still matches its definition."""
    made = inherit.resolve_child(reference, role, parent)
    return bool(msgspec.to_builtins(made) == msgspec.to_builtins(child.options))
