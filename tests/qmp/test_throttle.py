# SPDX-License-Identifier: Apache-2.0
"""Events that come often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from vhostblk.events import Event
from vhostblk.qmp.throttle import INTERVAL, EventThrottle

if TYPE_CHECKING:
    import asyncio


class Clock:
    """An event loop that only has `call_later`."""

    def __init__(self) -> None:
        self.timers: list[Any] = []

    def call_later(self, delay: float, call: Any, *arguments: Any) -> Any:
        assert delay == INTERVAL
        timer = SimpleNamespace(fire=lambda: call(*arguments), cancel=lambda: None)
        self.timers.append(timer)
        return timer


def io_error(node: str, number: int) -> Event:
    data = cast("Any", SimpleNamespace(node_name=node, number=number))
    return Event("BLOCK_IO_ERROR", data, float(number))


def throttled() -> tuple[EventThrottle, Clock, list[Event]]:
    clock = Clock()
    seen: list[Event] = []
    return EventThrottle(cast("asyncio.AbstractEventLoop", clock), seen.append), clock, seen


def test_the_first_and_the_last_of_a_second() -> None:
    throttle, clock, seen = throttled()
    events = [io_error("a", number) for number in range(5)]
    for event in events[:4]:
        throttle.take(event)
    assert seen == [events[0]]
    clock.timers.pop(0).fire()
    assert seen == [events[0], events[3]]
    throttle.take(events[4])
    clock.timers.pop(0).fire()
    assert seen == [events[0], events[3], events[4]]
    clock.timers.pop(0).fire()
    assert clock.timers == []
    throttle.take(events[1])
    assert seen[-1] == events[1]


def test_other_nodes_and_other_events_are_told_at_once() -> None:
    throttle, _, seen = throttled()
    events = [io_error("a", 1), io_error("b", 2), Event("X", None, 3.0), Event("X", None, 4.0)]
    for event in events:
        throttle.take(event)
    assert seen == events


def test_nothing_is_lost_at_the_end() -> None:
    throttle, _, seen = throttled()
    events = [io_error("a", number) for number in range(2)]
    for event in events:
        throttle.take(event)
    throttle.close()
    assert seen == events
