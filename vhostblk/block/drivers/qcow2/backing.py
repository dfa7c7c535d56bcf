# SPDX-License-Identifier: Apache-2.0
"""Which nodes an image asks for: the backing file and the data file that its header names.

What the user says goes first. Names are relative to the directory of the image that has them.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from vhostblk.block import inherit
from vhostblk.block.drivers.qcow2.opening import read_plainly
from vhostblk.block.errors import BlockError
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.header import Header
    from vhostblk.block.graph import Graph
    from vhostblk.block.node import BlockNode

#: Nodes inside each other; a backing chain may lead back to itself.
MAX_DEPTH = 100
#: The role of a file whose format is being looked at.
PROBE = "probe"
#: The role of the file with the guest's data.
DATA_FILE = "data-file"

_PROTOCOL = re.compile(r"([^/:]+):")
_PROBE_BYTES = 2048


def full_name(name: str, image: str) -> str:
    """Return a name that an image gives, as seen from here; raises BlockError."""
    if name.startswith("json:"):
        return name
    protocol = _PROTOCOL.match(name)
    if protocol is not None:
        if protocol[1] != "file":
            raise BlockError(f"Unknown protocol '{protocol[1]}'")
        name = name[len("file:") :]
    if not name.startswith("/") and image.startswith("json:"):
        raise BlockError("Cannot use relative backing file names for 'json:' images")
    return str(PurePosixPath(image).parent / name) if not name.startswith("/") else name


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn members with dots in their names into objects, as `json:` names may have them."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = tree
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise BlockError(f"Parameter '{name}' is unexpected")
        place[last] = nested(value) if isinstance(value, dict) else value
    return tree


def described(name: str) -> dict[str, Any]:
    """Return the options that a name, complete by now, stands for."""
    if not name.startswith("json:"):
        return {"driver": "file", "filename": name}
    from vhostblk.schema import json_text  # few images need it

    try:
        tree = json_text.parse(name[len("json:") :])
    except OptionError as error:
        raise BlockError(f"Could not parse the JSON options: {error}") from error
    if not isinstance(tree, dict):
        raise BlockError("Invalid JSON object given")
    return nested(tree)


async def open_backing(node: BlockNode, graph: Graph, header: Header) -> None:
    """Open the backing file of an image that is being opened, if it is to have one."""
    given = node.options.backing
    try:
        if isinstance(given, (str, BlockdevOptions)):
            if given != "":
                await graph.open_child(node, inherit.BACKING, given)
        elif given is not None and header.backing_file:
            await _open_named(node, graph, header)
    except BlockError as error:
        raise BlockError(f"Could not open backing file: {error}") from error


async def _open_named(node: BlockNode, graph: Graph, header: Header) -> None:
    if graph.opening_depth > MAX_DEPTH:
        raise BlockError("the backing chain is too long, or leads back to itself")
    assert header.backing_file is not None
    name = full_name(_text(header.backing_file), node.filename)
    options = described(name)
    kind = None if header.backing_format is None else _text(header.backing_format)
    if not name.startswith("json:") or options.get("driver") in ("file", "host_device"):
        if kind is None:
            kind = await _probe(node, graph, options)
        options = {"driver": kind, "file": options}
    try:
        converted = from_json(BlockdevOptions, options)
    except OptionError as error:
        if kind is not None and str(error).startswith("Parameter 'driver' does not accept"):
            raise BlockError(f"Unknown driver '{kind}'") from error
        raise BlockError(str(error)) from error
    await graph.open_child(node, inherit.BACKING, converted)


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
        await graph.open_child(node, DATA_FILE, given)
        return
    if header.data_file is None:
        raise BlockError("'data-file' is required for this image")
    name = full_name(_text(header.data_file), node.filename)
    try:
        options = from_json(BlockdevOptions, described(name))
    except OptionError as error:
        raise BlockError(str(error)) from error
    await graph.open_child(node, DATA_FILE, options)


def _text(raw: bytes) -> str:
    if b"\0" in raw:
        raise BlockError("a file name in the qcow2 header has a zero byte")
    return raw.decode("utf-8", "surrogateescape")


async def _probe(node: BlockNode, graph: Graph, options: dict[str, Any]) -> str:
    """Tell the format of a file by its first bytes, where nothing else says it."""
    child = await graph.open_child(node, PROBE, from_json(BlockdevOptions, options))
    try:
        data = await read_plainly(node.children[PROBE], 0, _PROBE_BYTES)
    except OSError as error:
        raise BlockError(
            f"Could not read '{child.filename}' to determine its format: {error.strerror}"
        ) from error
    finally:
        await graph.close_child(node, PROBE)
    return format_of(data)


#: First bytes of formats, and where else QEMU looks.
_SIGNATURES = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)


def format_of(data: bytes) -> str:
    """Return the name of the format that data starts like; `raw` where it is like none."""
    for offset, signature, name in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return name
    return "raw"
