# SPDX-License-Identifier: Apache-2.0
"""Backing chains: which image of a chain holds the data of a range.

An image may have a child "backing", with filters in between. A range is *allocated* in an image
that holds its data. Reads take a range from the first image of the chain in which it is allocated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.graph.node import BlockStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.node import BlockNode


def next_link(node: BlockNode) -> Edge | None:
    """Return the edge to the next node of the chain: the backing image, or the file."""
    return node.children.get(node.primary_role if node.is_filter else "backing")


def links(top: BlockNode) -> Iterator[Edge]:
    """Yield the edges of the chain from `top` downwards."""
    edge = next_link(top)
    while edge is not None:
        yield edge
        edge = next_link(edge.node)


def skip_filters(node: BlockNode) -> BlockNode:
    """Return the first node of the chain, from `node` down, that is no filter."""
    while node.is_filter and (edge := node.primary_child) is not None:
        node = edge.node
    return node


def next_image(node: BlockNode) -> BlockNode | None:
    """Return the backing image of `node`'s image, without filters."""
    backing = skip_filters(node).children.get("backing")
    return None if backing is None else skip_filters(backing.node)


async def is_allocated(node: BlockNode, offset: int, length: int) -> tuple[bool, int]:
    """Return whether `offset` is allocated in the node's image, and the length of that run.

    The length is 0 at and past the end.
    """
    length = min(length, node.size - offset)
    if length <= 0:
        return False, 0
    extent = await node.block_status(offset, length)
    return bool(extent.status & BlockStatus.ALLOCATED), min(extent.length, length)


async def is_empty(node: BlockNode) -> bool:
    """Return whether the node's image has no allocated data."""
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
    """Return `is_allocated` for the images from `top` down to `base`, both included.

    The length is 0 if all images end before `offset`.
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
