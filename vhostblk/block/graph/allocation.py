# SPDX-License-Identifier: Apache-2.0
"""Chains of images: which of them holds the data of a range.

An image lies on another one, its child "backing", and filters may lie between them. A range is
*allocated* in the first image of a chain that says so; what that image does not hold comes from the
next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.graph.node import BlockStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.node import BlockNode


def next_link(node: BlockNode) -> Edge | None:
    """Return the edge along which a chain goes on below a node: its backing image, or its file."""
    return node.children.get(node.primary_role if node.is_filter else "backing")


def links(top: BlockNode) -> Iterator[Edge]:
    """Yield the edges of the chain from `top` downwards."""
    edge = next_link(top)
    while edge is not None:
        yield edge
        edge = next_link(edge.node)


def skip_filters(node: BlockNode) -> BlockNode:
    """Return the first node of the chain from `node` on that holds data."""
    while node.is_filter and (edge := node.primary_child) is not None:
        node = edge.node
    return node


def next_image(node: BlockNode) -> BlockNode | None:
    """Return the image that the image of `node` lies on, filters left out."""
    backing = skip_filters(node).children.get("backing")
    return None if backing is None else skip_filters(backing.node)


async def is_allocated(node: BlockNode, offset: int, length: int) -> tuple[bool, int]:
    """Tell whether a node's image itself holds what is at `offset`, and for how many bytes so.

    The number is 0 at and past the end.
    """
    length = min(length, node.size - offset)
    if length <= 0:
        return False, 0
    extent = await node.block_status(offset, length)
    return bool(extent.status & BlockStatus.ALLOCATED), min(extent.length, length)


async def is_empty(node: BlockNode) -> bool:
    """Return whether a node's image itself has no data allocated."""
    offset = 0
    while offset < node.size:
        allocated, count = await is_allocated(node, offset, node.size - offset)
        if allocated or not count:
            return False
        offset += count
    return True


async def is_allocated_above(
    top: BlockNode | None, base: BlockNode, offset: int, length: int
) -> tuple[bool, int]:
    """Tell the same of a chain's images from `top` down to `base`, both included.

    The number is 0 where no image reaches as far as `offset`.
    """
    shortest = length
    while top is not None:
        allocated, count = await is_allocated(top, offset, shortest)
        if allocated:
            return True, count
        if count:
            shortest = min(shortest, count)
        if top is base:
            break
        top = next_image(top)
    return False, shortest
