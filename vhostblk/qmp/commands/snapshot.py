# SPDX-License-Identifier: Apache-2.0
"""Commands on snapshots: internal ones, and overlays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vhostblk.block.graph.actions import LateAction, perform
from vhostblk.block.graph.graph import check_not_backing
from vhostblk.block.graph.internal_snapshot import InternalSnapshotAction, can_snapshot, keeper_of
from vhostblk.block.graph.node import BlockNode
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.errors import errors_as
from vhostblk.qmp.errors import QmpError
from vhostblk.qmp.registry import command
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.driver_manifest import DEFAULT_OVERLAY
from vhostblk.schema.snapshot import (
    BlockdevSnapshot,
    BlockdevSnapshotDeleteInternal,
    BlockdevSnapshotInternal,
    BlockdevSnapshotSync,
    ChangeBackingFile,
    NewImageMode,
    SnapshotInfo,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.graph.actions import Action
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.internal_snapshot import KeepsSnapshots

T = TypeVar("T")


async def _perform(daemon: Daemon, make: Callable[[Graph, T], Action], arguments: T) -> None:
    """Create and perform an action once all earlier commands have ended."""
    await perform(daemon.graph, [LateAction(partial(make, daemon.graph, arguments))])


def _snapshot_node(graph: Graph, name: str) -> KeepsSnapshots:
    """Return the node that stores the snapshots of a node; raises VhostblkError.

    `name` is a node name. QEMU also accepts the name of a device, but there are no devices here.
    """
    node = graph.find(name, device=name)
    if any(isinstance(edge.parent, BlockNode) for edge in node.parents):
        raise QmpError("Need a root block node")
    if node.read_only:
        raise QmpError(f"Device '{name}' is read only")
    keeper = keeper_of(node)
    if keeper is None or not can_snapshot(node):
        raise QmpError(
            f"Block format '{node.driver}' used by device '{name}' does not support internal "
            "snapshots"
        )
    return keeper


def _find(graph: Graph, name: str | UnsetType, device: str | UnsetType = UNSET) -> BlockNode:
    """Return a node; `device` is not supported, as there are no devices."""
    name, device = (each if isinstance(each, str) else "" for each in (name, device))
    return graph.find(name, device=device)


def snapshot(graph: Graph, arguments: BlockdevSnapshot) -> Action:
    """Return the action that makes a node without a backing node the overlay of another."""
    from vhostblk.block.graph.overlay import OverlayAction

    base = _find(graph, arguments.node, arguments.node)
    check_not_backing(base)
    overlay = _find(graph, arguments.overlay, arguments.overlay)
    return OverlayAction(graph, base, overlay)


@command("blockdev-snapshot", features=("allow-write-only-overlay",))
async def blockdev_snapshot(daemon: Daemon, arguments: BlockdevSnapshot) -> None:
    """Make a node without a backing node the overlay of another."""
    await _perform(daemon, snapshot, arguments)


def snapshot_sync(graph: Graph, arguments: BlockdevSnapshotSync) -> Action:
    """Return the action that creates a file, and opens it as the overlay of a node."""
    from vhostblk.block.graph.overlay import NewOverlayAction

    base = _find(graph, arguments.node_name, arguments.device)
    check_not_backing(base)
    name = arguments.snapshot_node_name
    if not isinstance(name, str):
        raise QmpError("New overlay node-name missing")
    if any(node.node_name == name for node in graph):
        raise QmpError("New overlay node-name already in use")
    return NewOverlayAction(
        graph,
        base,
        arguments.snapshot_file,
        driver=arguments.format if isinstance(arguments.format, str) else DEFAULT_OVERLAY,
        node_name=name,
        create=arguments.mode is not NewImageMode.EXISTING,
    )


@command("blockdev-snapshot-sync")
async def blockdev_snapshot_sync(daemon: Daemon, arguments: BlockdevSnapshotSync) -> None:
    """Create a file, and open it as the overlay of a node."""
    await _perform(daemon, snapshot_sync, arguments)


@command("change-backing-file")
async def change_backing_file(daemon: Daemon, arguments: ChangeBackingFile) -> None:
    """Change the name of the backing file in an image."""
    from vhostblk.block.graph.overlay import rename_backing_file

    graph = daemon.graph
    async with graph.changing():
        top = _find(graph, arguments.device, arguments.device)
        if any(isinstance(edge.parent, BlockNode) for edge in top.parents):
            raise QmpError("Need a root block node")
        image = _find(graph, arguments.image_node_name)
        await rename_backing_file(graph, top, image, arguments.backing_file)


def snapshot_internal(graph: Graph, arguments: BlockdevSnapshotInternal) -> Action:
    """Return the action that creates an internal snapshot."""
    node = _snapshot_node(graph, arguments.device)
    if not arguments.name:
        raise QmpError("Name is empty")
    return InternalSnapshotAction(node, arguments.name, arguments.device)


@command("blockdev-snapshot-internal-sync")
async def blockdev_snapshot_internal(daemon: Daemon, arguments: BlockdevSnapshotInternal) -> None:
    """Create an internal snapshot."""
    await _perform(daemon, snapshot_internal, arguments)


@command("blockdev-snapshot-delete-internal-sync")
async def blockdev_snapshot_delete_internal(
    daemon: Daemon, arguments: BlockdevSnapshotDeleteInternal
) -> SnapshotInfo:
    """Delete an internal snapshot, and return its description."""
    number = arguments.id if isinstance(arguments.id, str) else None
    name = arguments.name if isinstance(arguments.name, str) else None
    async with daemon.graph.changing():
        node = _snapshot_node(daemon.graph, arguments.device)
        if number is None and name is None:
            raise QmpError("Name or id must be provided")
        with errors_as(QmpError, "Failed to delete the snapshot"):
            device = arguments.device
            found = await node.delete_snapshot(id=number, name=name, device=device)
    return found.describe()
