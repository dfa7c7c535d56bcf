# SPDX-License-Identifier: Apache-2.0
"""Queries on nodes and their graph."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhostblk.block.graph.describe import Descriptions, describe_graph
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.qmp.registry import command
from vhostblk.schema.base import UNSET
from vhostblk.schema.block_query import (
    BlockDeviceInfo,
    BlockDeviceStats,
    BlockInfo,
    BlockStats,
    BlockStatsSpecific,
    QueryBlockstats,
    QueryNamedBlockNodes,
    XDbgBlockGraph,
)

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode

#: From the kinds of request that exports count to QAPI's names.
_KINDS = {"read": "rd", "write": "wr", "flush": "flush", "unmap": "unmap"}


@command("query-named-block-nodes")
async def query_named_block_nodes(
    daemon: Daemon, arguments: QueryNamedBlockNodes
) -> list[BlockDeviceInfo]:
    """List the nodes, the newest first."""
    descriptions, flat = Descriptions(), arguments.flat is True
    return [descriptions.describe(node, flat=flat) for node in reversed(list(daemon.graph))]


@command("query-block")
async def query_block(daemon: Daemon) -> list[BlockInfo]:
    """List devices: as in the storage daemon, there are none."""
    return []


@command("query-blockstats")
async def query_blockstats(daemon: Daemon, arguments: QueryBlockstats) -> list[BlockStats]:
    """List what has been done on each node."""
    if arguments.query_nodes is not True:
        return []
    return [_node_stats(daemon, node) for node in daemon.graph]


def _node_stats(daemon: Daemon, node: BlockNode) -> BlockStats:
    child, specific = node.primary_child, BlockStatsSpecific.find_branch(node.driver)
    return BlockStats(
        node_name=node.node_name,
        stats=_export_stats(daemon, node),
        driver_specific=UNSET if specific is None else specific(),
        parent=UNSET if child is None else _node_stats(daemon, child.node),
    )


def _export_stats(daemon: Daemon, node: BlockNode) -> BlockDeviceStats:
    """Add up what the clients of a node's exports have done; in QEMU these are zeroes."""
    total: Counter[str] = Counter()
    for export in daemon.exports.values():
        if not any(edge.parent is export.backend for edge in node.parents):
            continue
        for queue in export.statistics().values():
            for kind, name in _KINDS.items():
                total[f"{name}_operations"] += queue[kind]["operations"]
                total[f"{name}_total_time_ns"] += queue[kind]["total_ns"]
                total[f"failed_{name}_operations"] += queue[kind]["failed"]
                if kind != "flush":
                    total[f"{name}_bytes"] += queue[kind]["bytes"]
    return replace(BlockDeviceStats(), **total)


@command("x-debug-query-block-graph", features=("unstable",))
async def query_block_graph(daemon: Daemon) -> XDbgBlockGraph:
    """Show nodes, their users, and the permissions along the edges."""
    return describe_graph(daemon.graph)
