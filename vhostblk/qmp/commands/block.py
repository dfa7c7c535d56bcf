# SPDX-License-Identifier: Apache-2.0
"""Commands that change nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import NoNode
from vhostblk.daemon import Daemon  # noqa: TC001 (annotations are read at run time)
from vhostblk.imports import load
from vhostblk.qmp.errors import QmpError
from vhostblk.qmp.registry import command, event
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.block import (
    BlockdevChange,
    BlockdevDel,
    BlockdevReopen,
    BlockdevSetActive,
    BlockImageCorrupted,
    BlockIoError,
    BlockResize,
    BlockSetWriteThreshold,
    BlockWriteThreshold,
)
from vhostblk.schema.blockdev import BlockdevOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.driver_manifest import DRIVERS

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph

# QEMU emits it only for its device models. It is declared for introspection, and never emitted.
event("BLOCK_IO_ERROR", BlockIoError)
event("BLOCK_IMAGE_CORRUPTED", BlockImageCorrupted)
event("BLOCK_WRITE_THRESHOLD", BlockWriteThreshold)
for _driver in DRIVERS.values():
    for _name, _data in _driver.events.items():
        event(_name, load(_data))


@command("blockdev-add")
async def blockdev_add(daemon: Daemon, arguments: BlockdevOptions) -> None:
    """Open a node."""
    await daemon.add_blockdev(arguments)


@command("blockdev-del")
async def blockdev_del(daemon: Daemon, arguments: BlockdevDel) -> None:
    """Close a node without users."""
    await daemon.remove_blockdev(arguments.node_name)


@command("blockdev-reopen")
async def blockdev_reopen(daemon: Daemon, arguments: BlockdevReopen) -> None:
    """Change the options of nodes."""
    await daemon.graph.reopen(arguments.options)


@command("blockdev-set-active")
async def blockdev_set_active(daemon: Daemon, arguments: BlockdevSetActive) -> None:
    """Activate or inactivate nodes."""
    name = arguments.node_name
    await daemon.graph.set_active(name if isinstance(name, str) else None, active=arguments.active)


@command("block_resize")
async def block_resize(daemon: Daemon, arguments: BlockResize) -> None:
    """Change a node's length; `device` is not supported, as there are no devices."""
    device, name = _text(arguments.device), _text(arguments.node_name)
    async with daemon.graph.changing():
        node = daemon.graph.find(name, device=device)
        if arguments.size < 0:
            raise QmpError("Parameter 'size' expects a >0 size")
        await daemon.graph.resize(node, arguments.size)


def _text(name: str | UnsetType) -> str:
    return name if isinstance(name, str) else ""


@command("block-set-write-threshold")
async def block_set_write_threshold(daemon: Daemon, arguments: BlockSetWriteThreshold) -> None:
    """Set the offset past which a write causes BLOCK_WRITE_THRESHOLD."""
    node = daemon.graph.find(arguments.node_name, NoNode.DEVICE)
    await daemon.graph.set_write_threshold(node, arguments.write_threshold)


@command("x-blockdev-change", features=("unstable",))
async def blockdev_change(daemon: Daemon, arguments: BlockdevChange) -> None:
    """Add or remove a child of a node, if its driver supports that (`quorum`)."""
    async with daemon.graph.changing():
        await _change_children(daemon.graph, arguments)


async def _change_children(graph: Graph, arguments: BlockdevChange) -> None:
    parent = graph.find(arguments.parent, device=arguments.parent)
    if (arguments.child is UNSET) == (arguments.node is UNSET):
        raise QmpError(
            "Either child or node must be specified"
            if arguments.child is UNSET
            else "The parameters child and node are in conflict"
        )
    if isinstance(arguments.child, str):
        await graph.remove_child(parent, arguments.child)
        return
    await graph.add_child(parent, graph.find(_text(arguments.node), NoNode.NODE))
