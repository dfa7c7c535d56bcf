# SPDX-License-Identifier: Apache-2.0
"""Limits how often monitors hear of what a guest can cause (`monitor/monitor.c`).

The first event of a kind is passed on at once. Of those within a second after one that was passed
on only the last is kept, and passed on when the second is over. What is of the same kind depends
on some members of the data too: a broken disk doesn't hide the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vhostblk.events import Event

#: Seconds between two events of a kind.
INTERVAL = 1.0

#: The events concerned, and the members that make a difference. QEMU looks at the QOM path of
#: BLOCK_IO_ERROR alone, which is empty for all exports.
KEYS: dict[str, tuple[str, ...]] = {
    "BLOCK_IO_ERROR": ("qom_path", "device", "node_name"),
    "QUORUM_FAILURE": (),
    "QUORUM_REPORT_BAD": ("node_name",),
}

_Key = tuple[object, ...]


class EventThrottle:
    """Passes events on to `deliver`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Event], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        #: Kinds of event that have to wait: what ends that, and what waits.
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        self._waiting: dict[_Key, Event] = {}

    def take(self, event: Event) -> None:
        """Pass an event on, now or later."""
        members = KEYS.get(event.name)
        if members is None:
            self._deliver(event)
            return
        key = (event.name, *(getattr(event.data, member, None) for member in members))
        if key in self._timers:
            self._waiting[key] = event
        else:
            self._pass_on(key, event)

    def close(self) -> None:
        """Pass on what waits and stop the clocks."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for event in self._waiting.values():
            self._deliver(event)
        self._waiting.clear()

    def _pass_on(self, key: _Key, event: Event) -> None:
        self._timers[key] = self._loop.call_later(INTERVAL, self._end, key)
        self._deliver(event)

    def _end(self, key: _Key) -> None:
        del self._timers[key]
        event = self._waiting.pop(key, None)
        if event is not None:
            self._pass_on(key, event)
