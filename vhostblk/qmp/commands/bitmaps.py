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
    """Return the action that adds a bitmap to a node."""
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
    """Return the action that removes a bitmap, also from its image."""
    return RemoveBitmap(graph, arguments.node, arguments.name)


def clear(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return the action that clears a bitmap."""
    return ClearBitmap(graph, arguments.node, arguments.name)


def enable(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return the action that enables a bitmap."""
    return EnableBitmap(graph, arguments.node, arguments.name, enabled=True)


def disable(graph: Graph, arguments: BlockDirtyBitmap) -> Action:
    """Return the action that disables a bitmap."""
    return EnableBitmap(graph, arguments.node, arguments.name, enabled=False)


def merge(graph: Graph, arguments: BlockDirtyBitmapMerge) -> Action:
    """Return the action that merges bitmaps into another one."""
    sources = [
        source if isinstance(source, str) else (source.node, source.name)
        for source in arguments.bitmaps
    ]
    return MergeBitmaps(graph, arguments.node, arguments.target, sources)


@command("block-dirty-bitmap-add")
async def block_dirty_bitmap_add(daemon: Daemon, arguments: BlockDirtyBitmapAdd) -> None:
    """Add a bitmap to a node."""
    await perform(daemon.graph, [add(daemon.graph, arguments)])


@command("block-dirty-bitmap-remove")
async def block_dirty_bitmap_remove(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Remove a bitmap, also from its image."""
    await perform(daemon.graph, [remove(daemon.graph, arguments)])


@command("block-dirty-bitmap-clear")
async def block_dirty_bitmap_clear(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Clear a bitmap."""
    await perform(daemon.graph, [clear(daemon.graph, arguments)])


@command("block-dirty-bitmap-enable")
async def block_dirty_bitmap_enable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Let a bitmap record writes."""
    await perform(daemon.graph, [enable(daemon.graph, arguments)])


@command("block-dirty-bitmap-disable")
async def block_dirty_bitmap_disable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Stop a bitmap from recording writes."""
    await perform(daemon.graph, [disable(daemon.graph, arguments)])


@command("block-dirty-bitmap-merge")
async def block_dirty_bitmap_merge(daemon: Daemon, arguments: BlockDirtyBitmapMerge) -> None:
    """Merge bitmaps into another one."""
    await perform(daemon.graph, [merge(daemon.graph, arguments)])


@command("x-debug-block-dirty-bitmap-sha256", features=("unstable",))
async def block_dirty_bitmap_sha256(
    daemon: Daemon, arguments: BlockDirtyBitmap
) -> BlockDirtyBitmapSha256:
    """Return a hash of a bitmap's content."""
    _, bitmap = lookup(daemon.graph, arguments.node, arguments.name)
    return BlockDirtyBitmapSha256(sha256=bitmap.sha256())
