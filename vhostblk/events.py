# SPDX-License-Identifier: Apache-2.0
"""Events for clients of monitors.

Any layer emits events; monitors listen. An event is a QAPI event: a name and a data struct
(`vhostblk.schema`), or none. Emitting never fails and never waits.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from vhostblk.trace import points as trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.schema.base import QapiStruct

logger = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True):
    """Something that happened at `timestamp`, in seconds since the epoch."""

    name: str
    data: QapiStruct | None
    timestamp: float


class EventBus:
    """Delivery of events to listeners."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], object]] = []

    def listen(self, listener: Callable[[Event], object]) -> None:
        """Call `listener(event)` for every event."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[Event], object]) -> None:
        """Undo `listen`."""
        self._listeners.remove(listener)

    def emit(self, name: str, data: QapiStruct | None = None) -> None:
        """Call all listeners; a failure of one does not affect the others."""
        event = Event(name, data, time.time())
        if trace.monitor_protocol_event_emit.enabled:
            trace.monitor_protocol_event_emit(name, data)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                logger.exception("event %s: a listener failed", name)
