# SPDX-License-Identifier: Apache-2.0
"""Conversion of options in any form (struct, dict, keyval or JSON text) to checked structs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vhostblk.schema import keyval
from vhostblk.schema.base import UNSET, QapiStruct
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.control import MonitorOptions
from vhostblk.schema.convert import from_json, from_keyval
from vhostblk.schema.errors import OptionError
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.identifiers import is_identifier
from vhostblk.schema.object import ObjectOptions
from vhostblk.schema.sandbox import SandboxFiles, SandboxOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.schema.create import BlockdevCreateOptions

    #: The forms of options in the Python API.
    Options = QapiStruct | Mapping[str, object] | str


def blockdev_options(options: Options) -> BlockdevOptions:
    """Return the definition of a root node; raises OptionError."""
    checked = cast("BlockdevOptions", _convert(BlockdevOptions, "driver", options))
    if checked.node_name is UNSET:
        raise OptionError("'node-name' must be specified for the root node", option="node-name")
    return checked


def create_options(options: Options) -> BlockdevCreateOptions:
    """Return the options of a new image; raises OptionError."""
    from vhostblk.schema.create import BlockdevCreateOptions

    return cast("BlockdevCreateOptions", _convert(BlockdevCreateOptions, "driver", options))


def export_options(options: Options) -> BlockExportOptions:
    """Return the definition of an export; raises OptionError."""
    return _checked_export(_convert(BlockExportOptions, "type", options))


def short_export_options(text: str, more: str) -> tuple[BlockExportOptions, str | None]:
    """Return the export that keyval text defines, and its property `more`.

    `more` is not an option of exports, and may be missing. Raises OptionError.
    """
    tree = keyval.parse(text)
    value = tree.pop(more, None)
    if value is not None and not isinstance(value, str):
        raise OptionError(f"Invalid parameter type for '{more}', expected: string")
    return _checked_export(from_keyval(BlockExportOptions, tree)), value


def _checked_export(converted: object) -> BlockExportOptions:
    checked = cast("BlockExportOptions", converted)
    if not is_identifier(checked.id):
        raise OptionError("Invalid block export id", option="id")
    checked.check()
    return checked


def object_options(options: Options) -> ObjectOptions:
    """Return the definition of an object; raises OptionError."""
    checked = cast("ObjectOptions", _convert(ObjectOptions, "qom-type", options))
    if not is_identifier(checked.id):
        raise OptionError("Parameter 'id' expects an identifier", option="id")
    checked.check()
    return checked


def monitor_options(options: Options) -> MonitorOptions:
    """Return the definition of a monitor; raises OptionError."""
    return cast("MonitorOptions", _convert(MonitorOptions, "chardev", options))


def sandbox_options(options: Options) -> SandboxOptions:
    """Return the options of the sandbox; a single directory needs no index."""
    tree, converter = _read(options, "enable")
    if isinstance(tree, dict) and isinstance(tree.get("directory"), str):
        tree = {**tree, "directory": [tree["directory"]]}
    checked = cast("SandboxOptions", converter(SandboxOptions, tree))
    if checked.files is SandboxFiles.ALLOW and checked.directory is not UNSET:
        raise OptionError(
            "directory= restricts the files that may be opened, files=allow allows all"
        )
    return checked


def _convert(schema: Any, implied_key: str, options: Options) -> Any:
    tree, converter = _read(options, implied_key)
    return converter(schema, tree)


def _read(options: Options, implied_key: str) -> tuple[Any, Any]:
    """Return a tree, and the function that converts it."""
    if isinstance(options, QapiStruct):
        return options, lambda schema, struct: struct
    if not isinstance(options, str):
        return options, from_json
    if options.startswith("{"):
        from vhostblk.schema import json_text

        return json_text.parse(options), from_json
    return keyval.parse(options, implied_key), from_keyval
