# SPDX-License-Identifier: Apache-2.0
"""Commands on dirty bitmaps."""

from __future__ import annotations

from vhostblk.block import node_bitmaps
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.registry import command
from vhostblk.schema.bitmap import (
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapSha256,
)


@command("block-dirty-bitmap-add")
async def block_dirty_bitmap_add(daemon: Daemon, arguments: BlockDirtyBitmapAdd) -> None:
    """Give a node a bitmap."""
    granularity = arguments.granularity
    await node_bitmaps.add(
        daemon.graph,
        arguments.node,
        arguments.name,
        granularity if isinstance(granularity, int) else None,
        persistent=arguments.persistent is True,
        disabled=arguments.disabled is True,
    )


@command("block-dirty-bitmap-remove")
async def block_dirty_bitmap_remove(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Take a bitmap away, and out of its image."""
    await node_bitmaps.remove(daemon.graph, arguments.node, arguments.name)


@command("block-dirty-bitmap-clear")
async def block_dirty_bitmap_clear(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap forget everything."""
    await node_bitmaps.clear(daemon.graph, arguments.node, arguments.name)


@command("block-dirty-bitmap-enable")
async def block_dirty_bitmap_enable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap record writes."""
    await node_bitmaps.enable(daemon.graph, arguments.node, arguments.name, enabled=True)


@command("block-dirty-bitmap-disable")
async def block_dirty_bitmap_disable(daemon: Daemon, arguments: BlockDirtyBitmap) -> None:
    """Have a bitmap record writes no more."""
    await node_bitmaps.enable(daemon.graph, arguments.node, arguments.name, enabled=False)


@command("block-dirty-bitmap-merge")
async def block_dirty_bitmap_merge(daemon: Daemon, arguments: BlockDirtyBitmapMerge) -> None:
    """Merge bitmaps into another one."""
    sources = [
        source if isinstance(source, str) else (source.node, source.name)
        for source in arguments.bitmaps
    ]
    await node_bitmaps.merge(daemon.graph, arguments.node, arguments.target, sources)


@command("x-debug-block-dirty-bitmap-sha256", features=("unstable",))
async def block_dirty_bitmap_sha256(
    daemon: Daemon, arguments: BlockDirtyBitmap
) -> BlockDirtyBitmapSha256:
    """Hash a bitmap's content."""
    _, bitmap = node_bitmaps.lookup(daemon.graph, arguments.node, arguments.name)
    return BlockDirtyBitmapSha256(sha256=bitmap.sha256())
