# SPDX-License-Identifier: Apache-2.0
"""The plug-in interface for block drivers. It is stable.

A driver is a class with a struct of options, a size and a way to read:

    class Options(plugin.Options, tag="zeroes", frozen=True):
        size: plugin.Size = 1 << 30

    class Zeroes(plugin.Driver[Options]):
        options_type = Options

        def size(self) -> int:
            return self.options.size

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length)

`Driver` lists the optional operations. `SyncDriver` is for drivers without coroutines, and
`vhostblk.plugin.testing` tests both kinds. A package offers its drivers as entry points,

    [project.entry-points."vhostblk.drivers"]
    zeroes = "my_package:Zeroes"

and a program that starts `vhostblk.Daemon` itself may `register()` them instead. The options are
members of `--blockdev zeroes,…` and of QMP's `blockdev-add`, typed as in QAPI: `bool`, `int` (64
bits), `Size` (takes suffixes: 4k), `str`, enumerations of strings, lists, other structs. An option
of the type `BlockdevRef` names or defines a child node: see `Child`.
"""

from __future__ import annotations

from vhostblk.block.errors import BlockError as DriverError
from vhostblk.plugin.child import Child, Extent, SyncChild
from vhostblk.plugin.driver import Driver
from vhostblk.plugin.sync import SyncDriver
from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions as Options
from vhostblk.schema.blockdev import BlockdevRef
from vhostblk.schema.common import Size
from vhostblk.schema.plugins import register

__all__ = [
    "UNSET",
    "BlockdevRef",
    "Child",
    "Driver",
    "DriverError",
    "Extent",
    "Options",
    "QapiStruct",
    "Size",
    "SyncChild",
    "SyncDriver",
    "UnsetType",
    "register",
]
