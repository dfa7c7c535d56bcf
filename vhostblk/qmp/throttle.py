# SPDX-License-Identifier: Apache-2.0
"""Rate limit for events that a guest can cause (`monitor/monitor.c`).

The first event of a kind is sent at once. Of the further events within one second, only the last
one is kept, and sent when the second is over. Some members of the data belong to the kind: the
events of one disk don't hide those of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vhostblk.events import Event

#: Seconds between two events of a kind.
INTERVAL = 1.0

#: The limited events, and the members that belong to the kind. QEMU uses only the QOM path of
#: BLOCK_IO_ERROR, which is empty for all exports.
KEYS: dict[str, tuple[str, ...]] = {
    "BLOCK_IO_ERROR": ("qom_path", "device", "node_name"),
    "QUORUM_FAILURE": (),
    "QUORUM_REPORT_BAD": ("node_name",),
}

_Key = tuple[object, ...]


class EventThrottle:
    """Rate limit in front of `deliver`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Event], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        #: Kinds of events in their second: the timer that ends it, and the event that waits.
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        self._waiting: dict[_Key, Event] = {}

    def take(self, event: Event) -> None:
        """Deliver an event, now or later."""
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
        """Deliver the events that wait, and stop the timers."""
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
