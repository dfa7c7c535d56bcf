# SPDX-License-Identifier: Apache-2.0
"""The short form: `vhostblk IMAGE --addr...`, and `--addr...` after one `--blockdev`.

It is turned into the options of the long form: an image becomes a `raw` node over `file` or
`host_device`, read-only unless the export is writable. A writable one gives back to the host what
the guest discards, which the long form has to ask for. With `allow-inactive=on` the image is left
to other processes until a front-end starts the disk.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhostblk.block.graph.node import BlockNode
from vhostblk.cli.errors import UsageError
from vhostblk.errors import os_errors_as
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import BlockdevDiscardOptions
from vhostblk.schema.drivers.file import BlockdevOptionsFile, BlockdevOptionsHostDevice
from vhostblk.schema.drivers.raw import BlockdevOptionsRaw
from vhostblk.schema.options import export_options

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.schema.export import BlockExportOptions

#: Name of the node, and id of the export, that the short form makes.
NAME = "disk"

#: A node name that no user can give: none was given.
_NO_NODE = "#none"


def short_export(address: str) -> BlockExportOptions:
    """Return the export that the properties after `--` describe; raises OptionError."""
    return export_options(f"type=vhost-user-blk,id={NAME},node-name={_NO_NODE},{address}")


def image_blockdev(image: str, export: BlockExportOptions) -> BlockdevOptionsRaw:
    """Return the definition of the image's node; raises UsageError where it can't be a disk."""
    with os_errors_as(UsageError, f"Could not open '{image}'", file=image):
        mode = os.stat(image).st_mode
    if stat.S_ISREG(mode):
        protocol = BlockdevOptionsFile
    elif stat.S_ISBLK(mode):
        protocol = BlockdevOptionsHostDevice
    else:
        raise UsageError(f"'{image}' is neither a regular file nor a block device")
    active = False if export.allow_inactive else UNSET
    name = NAME if export.node_name == _NO_NODE else export.node_name
    discard = BlockdevDiscardOptions.UNMAP if export.writable else BlockdevDiscardOptions.IGNORE
    return BlockdevOptionsRaw(
        node_name=name,
        read_only=not export.writable,
        discard=discard,
        file=protocol(filename=image, active=active),
        active=active,
    )


def choose_node(
    export: BlockExportOptions, graph: Graph, image_node: str | None = None
) -> BlockExportOptions:
    """Return the export of a node: the one named, the image's, or the only root of the graph."""
    if export.node_name != _NO_NODE:
        return export
    if image_node is not None:
        return replace(export, node_name=image_node)
    roots = [
        node.node_name
        for node in graph
        if not any(isinstance(edge.parent, BlockNode) for edge in node.parents)
    ]
    if len(roots) != 1:
        names = ", ".join(f"'{name}'" for name in roots)
        raise UsageError(f"node-name is missing: it may be one of {names}")
    return replace(export, node_name=roots[0])
