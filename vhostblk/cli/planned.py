# SPDX-License-Identifier: Apache-2.0
"""Comparison of a command line with the daemon that `--takeover` takes over from.

The new process gets that daemon's objects, nodes and exports, and not those of its command line.
Wrong options are errors nevertheless, and differences are warnings: otherwise they would only show
at the next restart.
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

#: The name of an option, its schema, the member with the name, and the parser.
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
        """Add an option; raises VhostblkError."""
        for kind, _, key, convert in _KINDS:
            if step.option == kind:
                self._put(kind, key, convert(step.value))

    def add_short_form(self, image: str | None, properties: str) -> None:
        """Add the short form; raises VhostblkError."""
        export, image_format = short_export(properties)
        if image is not None:
            # The first process has checked the format of the image.
            node = image_blockdev(image, export, image_format or DEFAULT_FORMAT)
            self._put("blockdev", "node-name", node)
            export = msgspec.structs.replace(export, node_name=node.node_name)
        self._put("export", "id", export)

    def _put(self, kind: str, key: str, options: QapiStruct) -> None:
        name: str = getattr(options, key.replace("-", "_"))
        self._kinds[kind][name] = options

    def differences(self, taken: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
        """Yield a line for each difference; none if nothing is planned.

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
    """Yield the names of members that differ."""
    ours, theirs = _members(planned), _members(taken)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name) and ours.get(name) != NO_NODE:
            yield name


def _members(options: QapiStruct) -> dict[str, Any]:
    """Return the members with their values, including omitted members of nodes."""
    if options.__struct_config__.tag == "secret":
        return {}  # a hand-over carries its value, not its options
    if isinstance(options, BlockdevOptions):
        options = inherit.resolve(options)
    members: dict[str, Any] = msgspec.to_builtins(options)
    return members
