# SPDX-License-Identifier: Apache-2.0
"""File names of images: which node a name stands for, parsed as QEMU's drivers do.

A name is a path, `json:` with options, or begins with a protocol: the name of a driver that needs
no format above it, as in `null-co://`, `blkdebug:CONFIG:IMAGE`, `blkverify:RAW:TEST`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import PurePosixPath
from typing import Any

from vhostblk.block.errors import BlockError
from vhostblk.schema.errors import OptionError

_FILES = ("file", "host_device")
_NULLS = ("null-co", "null-aio")
#: Drivers that take a file name themselves. With any other driver the name is for its child.
PROTOCOLS = frozenset({*_FILES, *_NULLS, "blkdebug", "blkverify"})

_PROTOCOL = re.compile(r"([^/:]+):")


def full_name(name: str, image: str, kind: str | None = None) -> str:
    """Resolve a file name found in `image`, relative to the image's own name; raises BlockError.

    `kind`: the driver that the image names, if any. With a file driver the name may contain any
    prefix.
    """
    if name.startswith("json:"):
        return name
    protocol = _PROTOCOL.match(name)
    if protocol is not None:
        if protocol[1] != "file":
            if kind in _FILES or protocol[1] in PROTOCOLS:
                return name
            raise BlockError(f"Unknown protocol '{protocol[1]}'")
        name = name[len("file:") :]
    if not name.startswith("/") and image.startswith("json:"):
        raise BlockError("Cannot use relative backing file names for 'json:' images")
    return str(PurePosixPath(image).parent / name) if not name.startswith("/") else name


def described(name: str, kind: str | None = None) -> dict[str, Any]:
    """Return the options that a full name stands for; raises BlockError.

    `kind`: the driver; None: the name decides. Options with a child "file" and no driver mean that
    the format is to be probed.
    """
    if name.startswith("json:"):
        options = _parsed(name[len("json:") :])
        return options if kind is None else {**options, "driver": kind}
    if kind is not None and kind not in PROTOCOLS:
        return {"driver": kind, "file": described(name)}
    kind = kind or protocol_of(name)
    rest = name.removeprefix(f"{kind}:")
    if kind in _NULLS:
        if rest != "//":
            raise BlockError(f"The only allowed filename for this driver is '{kind}://'")
        return {"driver": kind}
    if kind == "blkdebug":
        return _blkdebug(rest, plain=rest == name)
    if kind == "blkverify":
        raw, colon, test = rest.partition(":")
        if rest == name or not colon:
            raise BlockError("blkverify requires raw copy and original image path")
        return {"driver": kind, "raw": described(raw), "test": {"file": described(test)}}
    return {"driver": kind, "filename": rest}


def described_path(path: str) -> dict[str, Any]:
    """Return the options of a path in which no prefix has a meaning."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = 0  # opening it says what is wrong
    device = stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    return {"driver": "host_device" if device else "file", "filename": path}


def protocol_of(name: str) -> str:
    """Return the protocol driver of a full name that is not a `json:` one."""
    protocol = _PROTOCOL.match(name)
    return protocol[1] if protocol is not None and protocol[1] in PROTOCOLS else "file"


def _blkdebug(rest: str, *, plain: bool) -> dict[str, Any]:
    config, colon, image = ("", ":", rest) if plain else rest.partition(":")
    if not colon:
        raise BlockError("blkdebug requires both config file and image path")
    options = {"driver": "blkdebug", "image": described(image)}
    return {**options, "config": config} if config else options


def _parsed(text: str) -> dict[str, Any]:
    from vhostblk.schema import json_text  # few images need it

    try:
        tree = json_text.parse(text)
    except OptionError as error:
        raise BlockError(f"Could not parse the JSON options: {error}") from error
    if not isinstance(tree, dict):
        raise BlockError("Invalid JSON object given")
    return nested(tree)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn members with dotted names, which `json:` names may have, into nested objects."""
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
