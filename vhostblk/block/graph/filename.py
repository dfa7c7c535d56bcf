# SPDX-License-Identifier: Apache-2.0
"""File names of images: parsing a name into node options, as QEMU's drivers do.

A name is a path, `json:` with options, or starts with a protocol. A protocol is the name of a
driver that needs no format above it (a `ProtocolDriver`), as in `null-co://`.
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
    """The capability of a node class whose nodes have file names."""

    #: Whether names for this driver need not start with the driver's name.
    takes_any_prefix: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        """Return the options (without the driver) for a file name; raises BlockError.

        `rest` is the name without `driver:`. `prefixed` tells whether the name had this prefix.
        """

    @abstractmethod
    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        """Return a file name that opens an equal node; None: there is none.

        `below` has the names of the children, by role.
        """


def protocol_driver(name: str) -> type[ProtocolDriver] | None:
    """Return the driver class for the protocol of `name`; None: there is none.

    Plug-ins are not considered.
    """
    found = built_in_class(name)
    return found if found is not None and issubclass(found, ProtocolDriver) else None


def full_name(name: str, image: str, kind: str | None = None) -> str:
    """Resolve a file name recorded in `image` against the image's own name; raises BlockError.

    `kind` is the driver recorded in the image, if any.
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
    """Return the options for a full name; raises BlockError.

    `kind` is the driver; None: the name decides. If the options have a child "file" and no driver,
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
    """Return the options for a path. Prefixes have no meaning in it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = 0  # opening it reports the error
    device = stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    name = DEVICE_PROTOCOL if device else DEFAULT_PROTOCOL
    driver = protocol_driver(name)
    assert driver is not None
    return {"driver": name, **driver.options_of(path, prefixed=False)}


def protocol_of(name: str) -> str:
    """Return the protocol driver of a full name, which is no `json:` name."""
    prefix = _PREFIX.match(name)
    known = prefix is not None and protocol_driver(prefix[1]) is not None
    return prefix[1] if prefix is not None and known else DEFAULT_PROTOCOL


def _parsed(text: str) -> dict[str, Any]:
    from vhostblk.schema import json_text  # rarely needed

    with errors_as(BlockError, "Could not parse the JSON options", of=OptionError):
        tree = json_text.parse(text)
    if not isinstance(tree, dict):
        raise BlockError("Invalid JSON object given")
    return nested(tree)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Convert members with dotted names (allowed in `json:` names) to nested objects."""
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
