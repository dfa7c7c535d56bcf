# SPDX-License-Identifier: Apache-2.0
"""Commands on dirty bitmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.bitmaps.node_bitmaps import (
    AddBitmap,
    ClearBitmap,
    EnableBitmap,
    MergeBitmaps,
    RemoveBitmap,
    lookup,
)
from vhostblk.block.graph.actions import perform
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.registry import command
from vhostblk.schema.bitmap import (
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapSha256,
)

if TYPE_CHECKING:
    from vhostblk.block.graph.actions import Action
    from vhostblk.block.graph.graph import Graph


def add(graph: Graph, arguments: BlockDirtyBitmapAdd) -> Action:
    """Return what gives a node a bitmap."""
    granularity = arguments.granularity
    return AddBitmap(
        graph,
        arguments.node,
        arguments.name,
        granularity if isinstance(granularity, int) else None,
        persistent=arguments.persistent is True,
        disabled=arguments.disabled is True,
    )


def remove(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return what takes a bitmap away, and out of its image."""
    return RemoveBitmap(graph, arguments.node, arguments.name)


def clear(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return what has a bitmap forget everything."""
    return ClearBitmap(graph, arguments.node, arguments.name)


def enable(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return what has a bitmap record writes."""
    return EnableBitmap(graph, arguments.node, arguments.name, enabled=True)


def disable(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return what has a bitmap record writes no more."""
    return EnableBitmap(graph, arguments.node, arguments.name, enabled=False)


def merge(graph: Graph, arguments: BlockDirtyBitmapMerge) -> Action:
    """Return what merges bitmaps into another one."""
    sources = [
        source if isinstance(source, str) else (source.node, source.name)
        for source in arguments.bitmaps
    ]
    return MergeBitmaps(graph, arguments.node, arguments.target, sources)


@command("block-dirty-bitmap-add")
async def block_dirty_bitmap_add(daemon: Daemon, arguments: BlockDirtyBitmapAdd) -> None:
    """Give a node a bitmap."""
    await perform(daemon.graph, [add(daemon.graph, arguments)])


@command("block-dirty-bitmap-remove")
async def block_dirty_bitmap_remove(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Take a bitmap away, and out of its image."""
    await perform(daemon.graph, [remove(daemon.graph, arguments)])


@command("block-dirty-bitmap-clear")
async def block_dirty_bitmap_clear(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap forget everything."""
    await perform(daemon.graph, [clear(daemon.graph, arguments)])


@command("block-dirty-bitmap-enable")
async def block_dirty_bitmap_enable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap record writes."""
    await perform(daemon.graph, [enable(daemon.graph, arguments)])


@command("block-dirty-bitmap-disable")
async def block_dirty_bitmap_disable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap record writes no more."""
    await perform(daemon.graph, [disable(daemon.graph, arguments)])


@command("block-dirty-bitmap-merge")
async def block_dirty_bitmap_merge(daemon: Daemon, arguments: BlockDirtyBitmapMerge) -> None:
    """Merge bitmaps into another one."""
    await perform(daemon.graph, [merge(daemon.graph, arguments)])


@command("x-debug-block-dirty-bitmap-sha256", features=("unstable",))
async def block_dirty_bitmap_sha256(
    daemon: Daemon, arguments: BlockDirtyBitmap
) -> BlockDirtyBitmapSha256:
    """Hash a bitmap's content."""
    _, bitmap = lookup(daemon.graph, arguments.node, arguments.name)
    return BlockDirtyBitmapSha256(sha256=bitmap.sha256())
