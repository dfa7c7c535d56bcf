# SPDX-License-Identifier: Apache-2.0
"""What a command line would make, beside what `--takeover` takes over.

The taken daemon's objects, nodes and exports count, not those of the command line. Wrong options
are errors all the same, and differences are warnings: else they show at the next restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from vhostblk.block.graph import inherit
from vhostblk.cli.short_form import NO_NODE, image_blockdev, short_export
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.driver_manifest import DEFAULT_FORMAT
from vhostblk.schema.options import blockdev_options, export_options, object_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vhostblk.cli.arguments import Step
    from vhostblk.schema.base import QapiStruct

#: What an option is called, and what it makes; the member that names that; how it is read.
_KINDS: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("object", "object", "id", object_options),
    ("blockdev", "node", "node-name", blockdev_options),
    ("export", "export", "id", export_options),
)


class Planned:
    """The objects, nodes and exports of a command line, by name."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, QapiStruct]] = {kind: {} for kind, *_ in _KINDS}

    def add(self, step: Step) -> None:
        """Understand an option; raises VhostblkError."""
        for kind, _, key, convert in _KINDS:
            if step.option == kind:
                self._put(kind, key, convert(step.value))

    def add_short_form(self, image: str | None, properties: str) -> None:
        """Understand the short form; raises VhostblkError."""
        export, image_format = short_export(properties)
        if image is not None:
            # What the image looks like was asked for when the first process was started.
            node = image_blockdev(image, export, image_format or DEFAULT_FORMAT)
            self._put("blockdev", "node-name", node)
            export = msgspec.structs.replace(export, node_name=node.node_name)
        self._put("export", "id", export)

    def _put(self, kind: str, key: str, options: QapiStruct) -> None:
        name: str = getattr(options, key.replace("-", "_"))
        self._kinds[kind][name] = options

    def differences(self, taken: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
        """Yield lines that name what is not as planned; none where nothing is planned.

        `taken` has the definitions of what is taken over, by the name of the option.
        """
        if not any(self._kinds.values()):
            return
        for kind, what, key, convert in _KINDS:
            planned = dict(self._kinds[kind])
            for definition in taken[kind]:
                name = definition[key]
                if name not in planned:
                    yield f"{what} '{name}' is taken over; the command line has none"
                    continue
                members = list(_different(planned.pop(name), convert(definition)))
                if members:
                    yield (
                        f"{what} '{name}' is taken over as it is; on the command line these are "
                        f"different: {', '.join(members)}"
                    )
            for name in planned:
                yield f"{what} '{name}' is not made: the daemon that is taken over has none"


def _different(planned: QapiStruct, taken: QapiStruct) -> Iterator[str]:
    """Yield the names of members that differ, and may."""
    ours, theirs = _members(planned), _members(taken)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name) and ours.get(name) != NO_NODE:
            yield name


def _members(options: QapiStruct) -> dict[str, Any]:
    """Return the members with their values, also those of nodes that were left out."""
    if options.__struct_config__.tag == "secret":
        return {}  # it is handed over as its value, not as what it was read from
    if isinstance(options, BlockdevOptions):
        options = inherit.resolve(options)
    members: dict[str, Any] = msgspec.to_builtins(options)
    return members
