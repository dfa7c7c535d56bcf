# SPDX-License-Identifier: Apache-2.0
"""File names of nodes: a name that opens a node with the same data.

A name is made from the names of the node's children. A backing chain may be long, and each image
uses names below it more than once. So each name is computed once, children first.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vhostblk.block.graph.backing_name import auto_backing_name
from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.inherit import BACKING, DATA_FILE, FILE
from vhostblk.schema.base import UNSET
from vhostblk.schema.qdict import bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.graph.node import BlockNode

#: Children that are given by the image, or that hold the image.
_UNCHOSEN = frozenset({FILE, DATA_FILE, BACKING})


def image_name(node: BlockNode) -> str:
    """Return a file name for the data of the node; a `json:` name if no other can express it."""
    return ImageNames().of(node)


class ImageNames:
    """The file names of nodes, valid until the graph changes."""

    def __init__(self) -> None:
        self._shown: dict[BlockNode, str] = {}
        #: Names other than `json:` names; None: there is none.
        self._exact: dict[BlockNode, str | None] = {}
        #: Nodes whose backing image is not the one recorded in the image.
        self._rebased: set[BlockNode] = set()
        self._options: dict[BlockNode, dict[str, Any]] = {}

    def of(self, node: BlockNode) -> str:
        """Return a node's name."""
        for each in self._children_first(node):
            self._add(each)
        return self._shown[node]

    def _children_first(self, top: BlockNode) -> Iterator[BlockNode]:
        """Yield `top` and its descendants that have no name yet, children first."""
        pending = [top]
        while pending:
            node = pending[-1]
            unnamed = [edge.node for edge in node.children.values() if edge.node not in self._shown]
            if unnamed:
                pending += unnamed
                continue
            pending.pop()
            if node not in self._shown:
                yield node

    def _add(self, node: BlockNode) -> None:
        backing = node.children.get(BACKING)
        name = "" if backing is None else self._shown[backing.node]
        if name != auto_backing_name(node):
            self._rebased.add(node)
        exact = self._exact[node] = self._exact_name(node)
        child = node.primary_child
        if node.named_by_child and child is not None:
            self._shown[node] = self._shown[child.node]
        elif exact is not None:
            self._shown[node] = exact
        else:
            self._shown[node] = "json:" + json.dumps(self._full_options(node))

    def _exact_name(self, node: BlockNode) -> str | None:
        child = node.primary_child
        if isinstance(node, ProtocolDriver):
            names = {role: self._exact[edge.node] for role, edge in node.children.items()}
            if (name := node.exact_name(names)) is not None:
                return name
        if node.strong_options or node.is_filter or self._has_chosen_children(node):
            return None
        if child is None:
            return f"{node.driver}://"
        # Opening a file name probes the format, so the name of the file stands for the image.
        return self._exact[child.node] if _is_protocol(child.node) else None

    def _has_chosen_children(self, node: BlockNode) -> bool:
        """Return whether the user has chosen some of the children, instead of the image."""
        return node in self._rebased or any(
            edge.node.defined_in is not node
            or getattr(node.options, role.replace("-", "_")) is not UNSET
            for role, edge in node.children.items()
            if role not in _UNCHOSEN
        )

    def _full_options(self, node: BlockNode) -> dict[str, Any]:
        if node in self._options:
            return self._options[node]
        full = {"driver": node.driver, **node.strong_options}
        if auto_backing_name(node) and BACKING not in node.children:
            full[BACKING] = None
        for role, edge in node.children.items():
            if role == BACKING and node not in self._rebased:
                continue
            below, name = self._full_options(edge.node), role.partition(".")[0]
            if name == role:
                full[role] = below
            else:
                full.setdefault(name, []).append(below)
        self._options[node] = {name: full[name] for name in sorted(full, key=bucket)}
        return self._options[node]


def _is_protocol(node: BlockNode) -> bool:
    """Return whether a file name is parsed by this driver."""
    return not node.children or isinstance(node, ProtocolDriver)
