# SPDX-License-Identifier: Apache-2.0
"""The short form: `vhostblk IMAGE --addr...`, and `--addr...` after one `--blockdev`.

It is turned into the options of the long form: an image becomes a `raw` node over `file` or
`host_device`, read-only unless the export is writable. A writable one gives back to the host what
the guest discards, which the long form has to ask for. With `allow-inactive=on` the image is left
to other processes until a front-end starts the disk.

There is a queue for each processor of the host. The property `format` names another driver than
`raw`. An image that looks like another format is refused without it: a guest that writes to the
container of its image destroys it. It is not opened by its signature either: the guest of a raw
disk can write any header, with any file of the host as its backing file.
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

#: Name of the node, and id of the export, that the short form makes.
NAME = "disk"

#: What the image's `format` may be.
FORMATS = tuple(name for name, driver in DRIVERS.items() if driver.short_form)

#: How many queues are offered at most where the user doesn't say it.
MAX_QUEUES = 16

#: A node name that no user can give: none was given.
NO_NODE = "#none"


def short_export(address: str) -> tuple[BlockExportOptions, str | None]:
    """Return the export that the properties after `--` describe, and the image's format.

    The format is None where they don't name one. Raises OptionError.
    """
    # QEMU uses a queue for each processor of the guest, and fails where there are fewer.
    queues = min(os.cpu_count() or 1, MAX_QUEUES)
    defaults = f"id={NAME},node-name={NO_NODE},num-queues={queues}"
    text = f"type=vhost-user-blk,{defaults},{address}"
    return short_export_options(text, "format")


def image_blockdev(
    image: str, export: BlockExportOptions, image_format: str | None
) -> BlockdevOptions:
    """Return the definition of the image's node; raises UsageError where it can't be a disk."""
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
    if found in FORMATS:
        choice = f"after the address, format={found} opens it as such, format=raw"
    else:
        choice = f"{found} is not available in vhostblk yet; after the address, format=raw"
    raise UsageError(
        f"'{image}' looks like a {found} image: {choice} gives guests the bytes of the file itself"
    )


def choose_node(
    export: BlockExportOptions, graph: Graph, image_node: str | None = None
) -> BlockExportOptions:
    """Return the export of a node: the one named, the image's, or the only root of the graph."""
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
