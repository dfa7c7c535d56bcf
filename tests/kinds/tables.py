# SPDX-License-Identifier: Apache-2.0
"""The table entries of the examples: for vhostblk's tables, and as entry points."""

from __future__ import annotations

from vhostblk.schema.driver_manifest import Driver
from vhostblk.schema.export import ExportType
from vhostblk.schema.object import ObjectType

DRIVERS = {
    "test-dice": Driver(
        "tests.kinds.dice.options:DiceOptions",
        "tests.kinds.dice.node:DiceNode",
        create_options="tests.kinds.dice.options:DiceCreateOptions",
        create="tests.kinds.dice.node:create",
        statistics="tests.kinds.dice.options:DiceStatistics",
        signatures=((0, b"DICE"),),
    ),
}

EXPORT_TYPES = {
    "test-copy": ExportType(
        "tests.kinds.copying:CopyingOptions",
        "tests.kinds.copying:CopyingExport",
    ),
    "test-reader": ExportType(
        "tests.kinds.reader.options:ReaderOptions",
        "tests.kinds.reader.export:ReaderExport",
    ),
}

OBJECT_TYPES = {
    "test-lamp": ObjectType(
        "tests.kinds.lamp.options:LampOptions",
        "tests.kinds.lamp.lamp:Lamp",
    ),
}

#: The metadata of a package with `entry-points` in its `pyproject.toml`, as installers write it.
ENTRY_POINTS = """\
[vhostblk.exports]
test-copy = tests.kinds.copying:CopyingExport
test-reader = tests.kinds.reader.export:ReaderExport
[vhostblk.objects]
test-lamp = tests.kinds.lamp.lamp:Lamp
"""
