# SPDX-License-Identifier: Apache-2.0
"""The nodes that an image refers to: the backing file and the data file in its header.

The user's options take precedence. A backing file's name is relative to the directory of its image,
and may be `json:` or have a prefix. A data file's name is always a path, as in QEMU since
CVE-2024-4467: users who check an image's backing file rarely check for a data file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostblk.block.drivers.qcow2.opening import read_plainly
from vhostblk.block.errors import BlockError
from vhostblk.block.formats import HEAD_BYTES, format_of
from vhostblk.block.graph import inherit
from vhostblk.block.graph.filename import described, described_path, full_name
from vhostblk.errors import errors_as
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.errors import BadValueError, OptionError

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode

#: The maximum depth of nodes; a backing chain may be a cycle.
MAX_DEPTH = 100
#: The role of a file whose format is being probed.
PROBE = "probe"


async def open_backing(node: BlockNode, graph: Graph, header: Header) -> None:
    """Open the backing file of an image that is being opened, if it has one."""
    given = node.options.backing
    with errors_as(BlockError, "Could not open backing file", of=BlockError):
        if isinstance(given, (str, BlockdevOptions)):
            if given != "":
                await graph.open_child(node, inherit.BACKING, given)
        elif given is not None and header.backing_file:
            await _open_named(node, graph, header)


async def _open_named(node: BlockNode, graph: Graph, header: Header) -> None:
    if graph.opening_depth > MAX_DEPTH:
        raise BlockError("the backing chain is too long, or leads back to itself")
    assert header.backing_file is not None
    kind = None if header.backing_format is None else _text(header.backing_format)
    name = full_name(_text(header.backing_file), node.filename, kind)
    options = described(name, kind)
    if kind is None and not name.startswith("json:"):
        options = {"file": options}
    try:
        converted = from_json(BlockdevOptions, await _with_formats(node, graph, options))
    except OptionError as error:
        unknown = isinstance(error, BadValueError) and f".{error.option}".endswith(".driver")
        if kind is not None and unknown:
            raise BlockError(f"Unknown driver '{kind}'") from error
        raise BlockError(str(error)) from error
    await graph.open_child(node, inherit.BACKING, converted)


async def _with_formats(node: BlockNode, graph: Graph, options: dict[str, Any]) -> dict[str, Any]:
    """Return options with the `driver` of each node set; raises BlockError, OptionError."""
    found = dict(options)
    for role, below in options.items():
        if isinstance(below, dict) and ("driver" in below or "file" in below):
            found[role] = await _with_formats(node, graph, below)
    if "driver" not in found and "file" in found:
        found["driver"] = await _probe(node, graph, found["file"])
    return found


async def open_data_file(node: BlockNode, graph: Graph, header: Header) -> None:
    """Open the external data file of an image that is being opened, if it has one."""
    given = node.options.data_file
    if not header.geometry.external_data:
        if isinstance(given, (str, BlockdevOptions)):
            raise BlockError("'data-file' can only be set for images with an external data file")
        if header.raw_data_file:
            raise BlockError("data-file-raw requires a data file")
        return
    if isinstance(given, (str, BlockdevOptions)):
        await graph.open_child(node, inherit.DATA_FILE, given)
        return
    if header.data_file is None:
        raise BlockError("'data-file' is required for this image")
    options = from_json(BlockdevOptions, described_path(_text(header.data_file)))
    await graph.open_child(node, inherit.DATA_FILE, options)


def _text(raw: bytes) -> str:
    if b"\0" in raw:
        raise BlockError("a file name in the qcow2 header has a zero byte")
    return raw.decode("utf-8", "surrogateescape")


async def _probe(node: BlockNode, graph: Graph, file: Any) -> str:
    """Return the format of a file by its first bytes. Used if neither image nor user give it."""
    ref = file if isinstance(file, str) else from_json(BlockdevOptions, file)
    child = await graph.open_child(node, PROBE, ref)
    what = f"Could not read '{child.filename}' to determine its format"
    try:
        with errors_as(BlockError, what):
            data = await read_plainly(node.children[PROBE], 0, HEAD_BYTES)
    finally:
        await graph.close_child(node, PROBE)
    return format_of(data)
