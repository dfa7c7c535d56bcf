# SPDX-License-Identifier: Apache-2.0
"""The monitors of a daemon, which share the commands, the order of execution, and the events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError
from vhostblk.qmp.commands import load_all
from vhostblk.qmp.monitor import Monitor
from vhostblk.qmp.throttle import EventThrottle
from vhostblk.schema.control import MonitorMode
from vhostblk.schema.options import monitor_options

if TYPE_CHECKING:
    from vhostblk.chardev.base import Chardev
    from vhostblk.daemon import Daemon
    from vhostblk.events import Event
    from vhostblk.schema.options import Options

#: Seconds for running commands to complete when the daemon stops.
PATIENCE = 5.0


def add_monitor(daemon: Daemon, options: Options) -> None:
    """Serve QMP on a character device of a daemon; raises VhostblkError."""
    checked = monitor_options(options)
    chardev = daemon.chardevs.get(checked.chardev)
    if chardev is None:
        raise VhostblkError(f'chardev "{checked.chardev}" not found')
    if checked.mode is MonitorMode.READLINE:
        raise VhostblkError("Only QMP is supported")
    monitors = daemon.control
    if not isinstance(monitors, Monitors):
        monitors = daemon.control = Monitors(daemon)
    monitors.add(chardev, pretty=checked.pretty is True)


class Monitors:
    """The monitors. In-band commands are executed one at a time; monitors take turns."""

    def __init__(self, daemon: Daemon) -> None:
        load_all()
        self._daemon = daemon
        self._dispatcher = daemon.command_lock
        self._monitors: list[Monitor] = []
        self._takes_commands = not daemon.holds_commands
        self._throttle = EventThrottle(asyncio.get_running_loop(), self._deliver)
        daemon.events.listen(self._throttle.take)

    def add(self, chardev: Chardev, *, pretty: bool = False) -> None:
        """Serve QMP on a character device; raises ChardevError if it is in use."""
        monitor = Monitor(
            self._daemon,
            chardev,
            self._dispatcher,
            pretty=pretty,
            takes_commands=self._takes_commands,
        )
        monitor.start()
        self._monitors.append(monitor)

    def take_commands(self) -> None:
        """Begin to take commands: the daemon is complete."""
        self._takes_commands = True
        for monitor in self._monitors:
            monitor.take_commands()

    async def stop_commands(self) -> None:
        """Take no more commands and wait for those that run; events are still sent."""
        await asyncio.gather(*(monitor.stop_commands(PATIENCE) for monitor in self._monitors))

    def close(self) -> None:
        """Detach from the character devices."""
        self._daemon.events.forget(self._throttle.take)
        self._throttle.close()
        for monitor in self._monitors:
            monitor.close()
        self._monitors.clear()

    def _deliver(self, event: Event) -> None:
        for monitor in self._monitors:
            monitor.tell(event)
