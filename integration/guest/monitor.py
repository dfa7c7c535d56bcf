# SPDX-License-Identifier: Apache-2.0
"""QEMU's QMP for synchronous callers: `qemu.qmp` on an event loop of its own.

The loop turns only inside the calls below. Never call them on a thread whose own loop is running;
use `asyncio.to_thread` there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from qemu.qmp import EventListener, QMPClient

from integration.guest.errors import GuestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping


class Monitor:
    """A QMP session with one QEMU process."""

    def __init__(self, channel: socket.socket, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("guest")
        # QEMU killed by a test is not worth a warning.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._events = EventListener()
        self._client.register_listener(self._events)
        self._run(self._client.connect(channel))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and give its return value."""
        return self._run(self._client.execute(command, dict(arguments or {})))

    def wait_event(self, name: str, **data: object) -> Mapping[str, Any]:
        """Wait for the next event `name` whose data has these members; drop those before it."""
        event: Mapping[str, Any] = self._run(self._next_event(name, data))
        return event

    def close(self) -> None:
        """End the session, whether QEMU lives or not."""
        try:
            self._loop.run_until_complete(self._client.disconnect())
        except Exception as error:
            logging.getLogger(__name__).debug("QMP session ended: %s", error)
        self._loop.close()

    async def _next_event(self, name: str, data: Mapping[str, object]) -> Mapping[str, Any]:
        while True:
            event = await self._events.get()
            found = dict(event).get("data")
            if event["event"] == name and isinstance(found, dict) and data.items() <= found.items():
                return event

    def _run(self, work: Any) -> Any:
        async def with_deadline() -> Any:
            return await asyncio.wait_for(work, self._timeout)

        try:
            return self._loop.run_until_complete(with_deadline())
        except TimeoutError:
            raise GuestError(f"QMP: no answer within {self._timeout:.0f} s") from None
