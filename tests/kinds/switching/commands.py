# SPDX-License-Identifier: Apache-2.0
"""Commands on lamps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kinds.lamp.lamp import Lamp
from tests.kinds.switching.schema import SwitchedLamp, SwitchLamps
from vhostblk.qmp.registry import command, event

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon

event("TEST_LAMP_SWITCHED", SwitchedLamp)


@command("x-test-switch-lamps", features=("unstable",))
async def switch_lamps(daemon: Daemon, arguments: SwitchLamps) -> list[SwitchedLamp]:
    """Switch all lamps, and return those that changed."""
    switched = []
    for lamp in daemon.objects.values():
        if isinstance(lamp, Lamp) and lamp.options.on is not arguments.on:
            lamp.write("on", arguments.on)
            switched.append(SwitchedLamp(id=lamp.id, was_on=not arguments.on))
            daemon.events.emit("TEST_LAMP_SWITCHED", switched[-1])
    return switched
