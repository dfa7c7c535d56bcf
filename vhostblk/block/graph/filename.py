# SPDX-License-Identifier: Apache-2.0
"""File names of images: which node a name stands for, parsed as QEMU's drivers do.

A name is a path, `json:` with options, or begins with a protocol: the name of a driver that needs
no format above it (a `ProtocolDriver`), as in `null-co://`.
"""

from __future__ import annotations

import os
import re
import stat
from abc import ABC, abstractmethod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.inherit import FILE
from vhostblk.block.registry import built_in_class
from vhostblk.errors import errors_as
from vhostblk.schema.driver_manifest import DEFAULT_PROTOCOL, DEVICE_PROTOCOL
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = re.compile(r"([^/:]+):")


class ProtocolDriver(ABC):
    """What a node class has whose nodes have file names. Any other driver's are for its child."""

    #: A name that is known to be for this driver may begin with anything.
    takes_any_prefix: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        """Return the options, but for the driver, that a file name stands for; raises BlockError.

        `rest`: the name without `driver:`, which it began with if it was `prefixed`.
        """

    @abstractmethod
    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        """Return a file name that opens just this node; None: there is none.

        `below` are those of the children, by role.
        """


def protocol_driver(name: str) -> type[ProtocolDriver] | None:
    """Return the class of the driver that names beginning with `name` are for; None: there is none.

    Those of plug-ins are not among them.
    """
    found = built_in_class(name)
    return found if found is not None and issubclass(found, ProtocolDriver) else None


def full_name(name: str, image: str, kind: str | None = None) -> str:
    """Resolve a file name found in `image`, relative to the image's own name; raises BlockError.

    `kind`: the driver that the image names, if any.
    """
    if name.startswith("json:"):
        return name
    prefix = _PREFIX.match(name)
    if prefix is not None:
        if prefix[1] != DEFAULT_PROTOCOL:
            driver = None if kind is None else protocol_driver(kind)
            if driver is not None and driver.takes_any_prefix:
                return name
            if protocol_driver(prefix[1]) is not None:
                return name
            raise BlockError(f"Unknown protocol '{prefix[1]}'")
        name = name[len(prefix[0]) :]
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
    protocol = kind or protocol_of(name)
    driver = protocol_driver(protocol)
    if driver is None:
        return {"driver": protocol, FILE: described(name)}
    rest = name.removeprefix(f"{protocol}:")
    return {"driver": protocol, **driver.options_of(rest, prefixed=rest != name)}


def described_path(path: str) -> dict[str, Any]:
    """Return the options of a path in which no prefix has a meaning."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = 0  # opening it says what is wrong
    device = stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    name = DEVICE_PROTOCOL if device else DEFAULT_PROTOCOL
    driver = protocol_driver(name)
    assert driver is not None
    return {"driver": name, **driver.options_of(path, prefixed=False)}


def protocol_of(name: str) -> str:
    """Return the protocol driver of a full name that is not a `json:` one."""
    prefix = _PREFIX.match(name)
    known = prefix is not None and protocol_driver(prefix[1]) is not None
    return prefix[1] if prefix is not None and known else DEFAULT_PROTOCOL


def _parsed(text: str) -> dict[str, Any]:
    from vhostblk.schema import json_text  # few images need it

    with errors_as(BlockError, "Could not parse the JSON options", of=OptionError):
        tree = json_text.parse(text)
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
