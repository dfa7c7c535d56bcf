# SPDX-License-Identifier: Apache-2.0
"""The dirty bitmaps of nodes, as commands and jobs use them.

Whether a write is recorded is decided when it starts, and extent maps say it too. So bitmaps are
added, and begin or cease to record, inside drained sections: no write is lost, none half recorded.
A bitmap of a node in use is changed as a whole (cleared, merged into) inside one as well.

Messages are QEMU's; functions raise BlockError.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError, NodeNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from vhostblk.block.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph import Graph
    from vhostblk.block.node import BlockNode

DEFAULT_GRANULARITY = 64 << 10
MIN_GRANULARITY = 512


def find(node: BlockNode, name: str) -> DirtyBitmap | None:
    """Return a node's bitmap by name."""
    return next((each for each in node.bitmaps if each.name == name), None)


def lookup(graph: Graph, node_name: str, name: str) -> tuple[BlockNode, DirtyBitmap]:
    """Return a node and its bitmap."""
    try:
        node = graph.find(node_name)
    except NodeNotFoundError:
        raise BlockError(f"Node '{node_name}' not found") from None
    return node, _existing(node, name)


def _existing(node: BlockNode, name: str) -> DirtyBitmap:
    bitmap = find(node, name)
    if bitmap is None:
        raise BlockError(f"Dirty bitmap '{name}' not found")
    return bitmap


def check(bitmap: DirtyBitmap, *, change: bool = True, inconsistent: bool = False) -> None:
    """Raise BlockError where a bitmap isn't one that a user may change, or use.

    `inconsistent`: it may be such a one.
    """
    if bitmap.busy:
        raise BlockError(
            f"Bitmap '{bitmap.name}' is currently in use by another operation and cannot be used"
        )
    if change and bitmap.read_only:
        raise BlockError(f"Bitmap '{bitmap.name}' is readonly and cannot be modified")
    if bitmap.inconsistent and not inconsistent:
        raise BlockError(f"Bitmap '{bitmap.name}' is inconsistent and cannot be used")


def check_source(bitmap: DirtyBitmap, size: int) -> None:
    """Raise BlockError where a bitmap can't be merged into one of a disk of `size` bytes."""
    check(bitmap, change=False)
    if bitmap.size != size:
        raise BlockError(
            f"Bitmaps are of different sizes (destination size is {size}, source size is "
            f"{bitmap.size}) and can't be merged"
        )


def default_granularity(node: BlockNode) -> int:
    """Return the granularity of a node's bitmaps where the user doesn't say: its cluster size."""
    return min(max(node.cluster_size or DEFAULT_GRANULARITY, 4096), DEFAULT_GRANULARITY)


def make(node: BlockNode, name: str | None, granularity: int) -> DirtyBitmap:
    """Return a new bitmap for a node, which doesn't have it yet."""
    from vhostblk.block.dirty_bitmap import MAX_NAME, DirtyBitmap  # brings numpy

    if name is not None:
        if find(node, name) is not None:
            raise BlockError(f"Bitmap already exists: {name}")
        if len(name.encode(errors="surrogateescape")) > MAX_NAME:
            raise BlockError(f"Bitmap name too long: {name}")
    try:
        return DirtyBitmap(name, granularity.bit_length() - 1, node.size)
    except (MemoryError, ValueError):
        raise BlockError(
            f"Cannot allocate memory for a bitmap of granularity {granularity}"
        ) from None


def refresh(node: BlockNode) -> None:
    """Go by which bitmaps a node has, and which record; drained, or while it is opened."""
    node.recorders = tuple(each for each in node.bitmaps if each.recording and not each.read_only)
    for edge in node.parents:
        edge.refresh()


@asynccontextmanager
async def changing(graph: Graph, node: BlockNode) -> AsyncIterator[None]:
    """Change which bitmaps a node has and which record, inside the block."""
    async with graph.drained([node]):
        try:
            yield
        finally:
            refresh(node)


async def add(
    graph: Graph,
    node_name: str,
    name: str,
    granularity: int | None = None,
    *,
    persistent: bool = False,
    disabled: bool = False,
) -> None:
    """Give a node a bitmap; `granularity` in bytes."""
    if not name:
        raise BlockError("Bitmap name cannot be empty")
    async with graph.exclusive():
        try:
            node = graph.find(node_name)
        except NodeNotFoundError:
            raise BlockError(
                f"Cannot find device='{node_name}' nor node-name='{node_name}'"
            ) from None
        if granularity is None:
            granularity = default_granularity(node)
        elif granularity < MIN_GRANULARITY or granularity & (granularity - 1):
            raise BlockError(f"Granularity must be power of 2 and at least {MIN_GRANULARITY}")
        if persistent:
            await node.check_new_bitmap(name, granularity)
        bitmap = make(node, name, granularity)
        bitmap.persistent, bitmap.disabled = persistent, disabled
        async with changing(graph, node):
            bitmap.resize(node.size)
            node.bitmaps.insert(0, bitmap)


async def remove(graph: Graph, node_name: str, name: str) -> None:
    """Take a bitmap away from a node, and out of its image."""
    async with graph.exclusive():
        node, bitmap = lookup(graph, node_name, name)
        check(bitmap, inconsistent=True)
        async with changing(graph, node):
            if bitmap.persistent:
                await node.remove_stored_bitmap(name)
            node.bitmaps.remove(bitmap)


async def clear(graph: Graph, node_name: str, name: str) -> None:
    """Have a bitmap forget everything."""
    async with graph.exclusive():
        node, bitmap = lookup(graph, node_name, name)
        check(bitmap)
        async with changing(graph, node):
            bitmap.clear()


async def enable(graph: Graph, node_name: str, name: str, *, enabled: bool) -> None:
    """Have a bitmap record, or not."""
    async with graph.exclusive():
        node, bitmap = lookup(graph, node_name, name)
        check(bitmap, change=False)
        async with changing(graph, node):
            bitmap.disabled = not enabled


async def merge(
    graph: Graph, node_name: str, target: str, sources: Iterable[str | tuple[str, str]]
) -> None:
    """Merge bitmaps into another one; nothing changes where one of them can't be.

    `sources`: names of bitmaps of the same node, or node and name.
    """
    async with graph.exclusive():
        node, bitmap = lookup(graph, node_name, target)
        found = []
        for source in sources:
            other = (
                _existing(node, source) if isinstance(source, str) else lookup(graph, *source)[1]
            )
            check_source(other, bitmap.size)
            found.append(other)
        check(bitmap)
        async with changing(graph, node):
            for other in found:
                bitmap.merge(other)
