# SPDX-License-Identifier: Apache-2.0
"""Nodes and the graph as the queries show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from vhostblk.block.graph.allocation import links
from vhostblk.block.graph.backing_name import auto_backing_name
from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.inherit import BACKING, DATA_FILE, FILE
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
from vhostblk.schema.qdict import bucket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.graph import Graph

#: Members of `ImageInfo` that nodes without a format have from below.
_PASSED_ON = ("cluster_size", "dirty_flag")

#: Children that the image says, or that are where the image is.
_UNCHOSEN = frozenset({FILE, DATA_FILE, BACKING})


def image_name(node: BlockNode) -> str:
    """Return a file name that opens what the node shows; a `json:` one where nothing else does."""
    child = node.primary_child
    if node.named_by_child and child is not None:
        return image_name(child.node)
    name = _exact_name(node)
    return "json:" + json.dumps(_full_options(node)) if name is None else name


def _exact_name(node: BlockNode) -> str | None:
    child = node.primary_child
    names = {role: _exact_name(edge.node) for role, edge in node.children.items()}
    if isinstance(node, ProtocolDriver) and (name := node.exact_name(names)) is not None:
        return name
    if node.strong_options or node.is_filter or _has_chosen_children(node):
        return None
    if child is None:
        return f"{node.driver}://"
    # A format is told from what a file of that name holds.
    return names[child.role] if _is_protocol(child.node) else None


def _is_protocol(node: BlockNode) -> bool:
    """Tell whether a file name leads to a node of this driver."""
    return not node.children or isinstance(node, ProtocolDriver)


def _has_chosen_children(node: BlockNode) -> bool:
    """Tell whether the user, and not the image, says what some of its parts are."""
    return _has_other_backing(node) or any(
        edge.node.defined_in is not node
        or getattr(node.options, role.replace("-", "_")) is not UNSET
        for role, edge in node.children.items()
        if role not in _UNCHOSEN
    )


def _has_other_backing(node: BlockNode) -> bool:
    """Tell whether a node lies on anything else than what its image says."""
    backing = node.children.get(BACKING)
    name = "" if backing is None else image_name(backing.node)
    return name != auto_backing_name(node)


def _full_options(node: BlockNode) -> dict[str, Any]:
    full = {"driver": node.driver, **node.strong_options}
    if auto_backing_name(node) and BACKING not in node.children:
        full[BACKING] = None
    for role, edge in node.children.items():
        if role == BACKING and not _has_other_backing(node):
            continue
        below, name = _full_options(edge.node), role.partition(".")[0]
        if name == role:
            full[role] = below
        else:
            full.setdefault(name, []).append(below)
    return {name: full[name] for name in sorted(full, key=bucket)}


def describe_node(node: BlockNode, *, flat: bool = False) -> BlockDeviceInfo:
    """Return a node's entry in `query-named-block-nodes`; `flat` without what it lies on."""
    cache = node.options.cache
    below = () if flat else tuple(links(node))
    backing = node.children.get(BACKING)
    return BlockDeviceInfo(
        file=image_name(node),
        node_name=node.node_name,
        ro=node.read_only,
        drv=node.driver,
        backing_file=UNSET if backing is None else image_name(backing.node),
        backing_file_depth=len(below),
        active=node.active,
        detect_zeroes=node.options.detect_zeroes,
        image=_describe_chain(node, [edge.node for edge in below]),
        cache=BlockdevCacheInfo(writeback=True, direct=cache.direct, no_flush=cache.no_flush),
        write_threshold=node.write_threshold,
        dirty_bitmaps=[_describe_bitmap(each) for each in node.bitmaps] or UNSET,
    )


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


def _describe_chain(node: BlockNode, below: list[BlockNode]) -> ImageInfo:
    """Describe a node's image and, in it, those that it lies on."""
    info: ImageInfo | UnsetType = UNSET
    for image in reversed([node, *below]):
        info = replace(_describe_image(image), backing_image=info)
    assert isinstance(info, ImageInfo)
    return info


def _describe_image(node: BlockNode) -> ImageInfo:
    allocated = node.allocated_size
    members: dict[str, Any] = {
        "filename": image_name(node),
        "format": node.driver,
        "actual_size": UNSET if allocated is None else allocated,
        "virtual_size": node.size,
    }
    if _lies_on_file(node):
        members["dirty_flag"] = False
        below = _informant(node).image_details
        members.update({name: below[name] for name in _PASSED_ON if name in below})
    keeper = keeper_of(node)
    if keeper not in (None, node) and "snapshots" in (kept := keeper.image_details):
        members["snapshots"] = kept["snapshots"]
    members.update(node.image_details)
    return ImageInfo(**members)


def _informant(node: BlockNode) -> BlockNode:
    """Return the node below, or this one, that knows how the image is made."""
    while not node.image_details and (child := node.primary_child) is not None:
        node = child.node
    return node


def _lies_on_file(node: BlockNode) -> bool:
    """Tell whether QEMU's driver has details; none here ever says that an image is dirty."""
    while (child := node.primary_child) is not None:
        if not node.described_by_child:
            return False
        node = child.node
    return isinstance(node, StorageNode)


def describe_graph(graph: Graph) -> XDbgBlockGraph:
    """Return nodes, their users and all edges, for debugging; numbers and order as in QEMU."""
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
