# SPDX-License-Identifier: Apache-2.0
"""Descriptions of nodes and of the graph for queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from vhostblk.block.graph.allocation import links
from vhostblk.block.graph.image_name import ImageNames
from vhostblk.block.graph.inherit import BACKING
from vhostblk.block.graph.internal_snapshot import keeper_of
from vhostblk.block.graph.node import BlockNode
from vhostblk.block.graph.permissions import PERM_NAMES, Perm
from vhostblk.block.graph.storage import StorageNode
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.block_query import (
    BlockdevCacheInfo,
    BlockDeviceInfo,
    BlockDirtyInfo,
    BlockPermission,
    ImageInfo,
    XDbgBlockGraph,
    XDbgBlockGraphEdge,
    XDbgBlockGraphNode,
    XDbgBlockGraphNodeType,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph

#: Members of `ImageInfo` that nodes without a format take from their child.
_PASSED_ON = ("cluster_size", "dirty_flag")


class Descriptions:
    """The descriptions for one query. Each node is described once, however many parents it has."""

    def __init__(self) -> None:
        self._names = ImageNames()
        self._images: dict[BlockNode, ImageInfo] = {}
        self._chains: dict[BlockNode, ImageInfo] = {}

    def describe(self, node: BlockNode, *, flat: bool = False) -> BlockDeviceInfo:
        """Return a node's entry of `query-named-block-nodes`; `flat`: without backing images."""
        cache = node.options.cache
        below = [] if flat else [edge.node for edge in links(node)]
        backing = node.children.get(BACKING)
        return BlockDeviceInfo(
            file=self._names.of(node),
            node_name=node.node_name,
            ro=node.read_only,
            drv=node.driver,
            backing_file=UNSET if backing is None else self._names.of(backing.node),
            backing_file_depth=len(below),
            active=node.active,
            detect_zeroes=node.options.detect_zeroes,
            image=self._image(node) if flat else self._chain(node, below),
            cache=BlockdevCacheInfo(writeback=True, direct=cache.direct, no_flush=cache.no_flush),
            write_threshold=node.write_threshold,
            dirty_bitmaps=[_describe_bitmap(each) for each in node.bitmaps] or UNSET,
        )

    def _chain(self, node: BlockNode, below: list[BlockNode]) -> ImageInfo:
        """Return the `ImageInfo` of a node, with its backing chain inside."""
        described: ImageInfo | UnsetType = UNSET
        for each in reversed([node, *below]):
            known = self._chains.get(each)
            if known is None:
                known = replace(self._image(each), backing_image=described)
                self._chains[each] = known
            described = known
        return self._chains[node]

    def _image(self, node: BlockNode) -> ImageInfo:
        if node not in self._images:
            self._images[node] = _describe_image(node, self._names.of(node))
        return self._images[node]


def _describe_bitmap(bitmap: DirtyBitmap) -> BlockDirtyInfo:
    return BlockDirtyInfo(
        name=UNSET if bitmap.name is None else bitmap.name,
        count=bitmap.count,
        granularity=bitmap.granularity,
        recording=bitmap.recording,
        busy=bitmap.busy,
        persistent=bitmap.persistent,
        inconsistent=bitmap.inconsistent or UNSET,
    )


def _describe_image(node: BlockNode, name: str) -> ImageInfo:
    allocated = node.allocated_size
    members: dict[str, Any] = {
        "filename": name,
        "format": node.driver,
        "actual_size": UNSET if allocated is None else allocated,
        "virtual_size": node.size,
    }
    if _lies_on_file(node):
        members["dirty_flag"] = False
        below = _node_with_details(node).image_details
        members.update({name: below[name] for name in _PASSED_ON if name in below})
    keeper = keeper_of(node)
    if keeper not in (None, node) and "snapshots" in (kept := keeper.image_details):
        members["snapshots"] = kept["snapshots"]
    members.update(node.image_details)
    return ImageInfo(**members)


def _node_with_details(node: BlockNode) -> BlockNode:
    """Return the nearest node, from this one down, that has details of the image."""
    while not node.image_details and (child := node.primary_child) is not None:
        node = child.node
    return node


def _lies_on_file(node: BlockNode) -> bool:
    """Return whether QEMU's driver has details; no driver here reports a dirty image."""
    while (child := node.primary_child) is not None:
        if not node.described_by_child:
            return False
        node = child.node
    return isinstance(node, StorageNode)


def describe_graph(graph: Graph) -> XDbgBlockGraph:
    """Return nodes, their users and all edges, for debugging. Numbers and order as in QEMU."""
    numbers: dict[BlockNode | BlockBackend, int] = {}
    vertices: list[XDbgBlockGraphNode] = []
    edges: list[XDbgBlockGraphEdge] = []

    def number(vertex: BlockNode | BlockBackend) -> int:
        return numbers.setdefault(vertex, len(numbers) + 1)

    def add(vertex: BlockNode | BlockBackend, below: Iterable[Edge]) -> None:
        vertices.append(_describe_vertex(number(vertex), vertex))
        edges.extend(
            XDbgBlockGraphEdge(
                parent=number(vertex),
                child=number(edge.node),
                name=edge.role,
                perm=_permissions(edge.perm),
                shared_perm=_permissions(edge.shared),
            )
            for edge in below
        )

    for backend in graph.backends:
        add(backend, [backend.edge])
    for node in graph:
        add(node, reversed(node.children.values()))
    return XDbgBlockGraph(nodes=vertices[::-1], edges=edges[::-1])


def _describe_vertex(number: int, vertex: BlockNode | BlockBackend) -> XDbgBlockGraphNode:
    if isinstance(vertex, BlockNode):
        kind, name = XDbgBlockGraphNodeType.BLOCK_DRIVER, vertex.node_name
    else:
        kind, name = XDbgBlockGraphNodeType.BLOCK_BACKEND, vertex.name
    return XDbgBlockGraphNode(id=number, type=kind, name=name)


def _permissions(perm: Perm) -> list[BlockPermission]:
    names = [name for flag, name in PERM_NAMES.items() if flag & perm]
    return [BlockPermission(name.replace(" ", "-")) for name in reversed(names)]
