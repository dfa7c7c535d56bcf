# SPDX-License-Identifier: Apache-2.0
"""The short form: `vhostblk IMAGE --addr...`, and `--addr...` after one `--blockdev`.

It is converted to options of the long form. An image becomes a `raw` node above `file` or
`host_device`. The node is read-only unless the export is writable. A writable node has
`discard=unmap`, which is not the default of the long form. With `allow-inactive=on` the node is
inactive until a front-end starts the disk.

The export has a queue for each processor of the host, at most `MAX_QUEUES`. The property `format`
names another driver than `raw`. Without it, an image that looks like another format is refused: a
guest that writes to such an image as a raw disk destroys it. The format is not detected from the
content: the guest of a raw disk can write any header, with any file of the host as backing file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from vhostblk.block.formats import HEAD_BYTES, TAIL_BYTES, likely_format
from vhostblk.block.graph.inherit import FILE
from vhostblk.block.graph.node import BlockNode
from vhostblk.cli.errors import UsageError
from vhostblk.errors import errors_as
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.driver_manifest import (
    DEFAULT_FORMAT,
    DEFAULT_PROTOCOL,
    DEVICE_PROTOCOL,
    DRIVERS,
)
from vhostblk.schema.options import short_export_options

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.schema.export import BlockExportOptions

#: Name of the node, and id of the export, that the short form creates.
NAME = "disk"

#: The values of `format`.
FORMATS = tuple(name for name, driver in DRIVERS.items() if driver.short_form)

#: Maximum number of queues that are offered by default.
MAX_QUEUES = 16

#: A node name that no user can give; it stands for a missing one.
NO_NODE = "#none"


def short_export(address: str) -> tuple[BlockExportOptions, str | None]:
    """Return the export that the properties after `--` describe, and the image's format.

    The format is None if they don't name one. Raises OptionError.
    """
    # QEMU uses a queue for each processor of the guest, and fails if there are fewer.
    queues = min(os.cpu_count() or 1, MAX_QUEUES)
    defaults = f"id={NAME},node-name={NO_NODE},num-queues={queues}"
    text = f"type=vhost-user-blk,{defaults},{address}"
    return short_export_options(text, "format")


def image_blockdev(
    image: str, export: BlockExportOptions, image_format: str | None
) -> BlockdevOptions:
    """Return the definition of the image's node; raises UsageError if it can't be a disk."""
    with errors_as(UsageError, f"Could not open '{image}'", file=image):
        mode = os.stat(image).st_mode
    if stat.S_ISREG(mode):
        protocol = DEFAULT_PROTOCOL
    elif stat.S_ISBLK(mode):
        protocol = DEVICE_PROTOCOL
    else:
        raise UsageError(f"'{image}' is neither a regular file nor a block device")
    if image_format is None:
        image_format = _format_without_doubt(image)
    if image_format not in FORMATS:
        raise UsageError(f"format={image_format} is not one of {', '.join(FORMATS)}")
    active = {"active": False} if export.allow_inactive else {}
    definition = {
        "driver": image_format,
        "node-name": NAME if export.node_name == NO_NODE else export.node_name,
        "read-only": not export.writable,
        "discard": "unmap" if export.writable else "ignore",
        FILE: {"driver": protocol, "filename": image, **active},
        **active,
    }
    return cast("BlockdevOptions", from_json(BlockdevOptions, definition))


def _format_without_doubt(image: str) -> str:
    """Return `raw`; raises UsageError for an image that looks like another format."""
    with (
        errors_as(UsageError, f"Could not open '{image}'", file=image),
        Path(image).open("rb", buffering=0) as file,
    ):
        head = file.read(HEAD_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        tail = file.read(TAIL_BYTES)
    found = likely_format(head, tail)
    if found == DEFAULT_FORMAT:
        return found
    raw = "',format=raw' to give guests the bytes of the file itself"
    if found in FORMATS:
        choice = f"append ',format={found}' to the address to open it as such, or {raw}"
    else:
        choice = f"{found} is not available in vhostblk yet; append {raw}"
    raise UsageError(f"'{image}' looks like a {found} image: {choice}")


def choose_node(
    export: BlockExportOptions, graph: Graph, image_node: str | None = None
) -> BlockExportOptions:
    """Return the export with a node: the one named, the image's, or the graph's only root."""
    if export.node_name != NO_NODE:
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
