# SPDX-License-Identifier: Apache-2.0
"""A daemon with a QMP connection; every wait has a deadline."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.qmp_exports.daemons import start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.qmp_exports.daemons import Program

#: Seconds to wait for actions that take milliseconds on an idle machine.
PATIENCE = 60.0


class DaemonGoneError(Exception):
    """The daemon has exited, or it did not answer and was killed; `str()` has the reason."""


class Daemon:
    """A running daemon. `events`: all events so far, as (name, data)."""

    def __init__(
        self,
        program: Program,
        log: Path,
        arguments: Sequence[str] = (),
        directory: Path | None = None,
    ) -> None:
        """Start it; raises DaemonGoneError if it ends at once."""
        self.log = log
        self.events: list[tuple[str, Any]] = []
        self.process, self._socket = start(program, log, arguments, directory)
        self._buffer = b""
        try:
            self._receive(lambda message: "QMP" in message)
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def send(self, line: str) -> dict[str, Any]:
        """Send an unchanged line; return the reply. Raises DaemonGoneError."""
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.sendall(line.encode() + b"\n")
        except OSError:
            raise self._gone() from None
        return self._receive(lambda message: "return" in message or "error" in message)

    def execute(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command."""
        return self.send(json.dumps({"execute": command, "arguments": arguments}))

    def wait_event(self, name: str, members: dict[str, Any], since: int) -> bool:
        """Wait for an event, also in `events[since:]`; return False if it does not arrive."""

        def is_wanted(event: str, data: Any) -> bool:
            return event == name and members.items() <= (data or {}).items()

        if any(is_wanted(*event) for event in self.events[since:]):
            return True
        try:
            self._receive(lambda message: is_wanted(message.get("event", ""), message.get("data")))
        except TimeoutError:
            return False
        return True

    def wait_end(self) -> int | None:
        """Receive events until the daemon exits; return its exit status, None if it was killed."""
        try:
            self._receive(lambda _message: False)
        except (TimeoutError, DaemonGoneError):
            pass
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def has_ended(self) -> bool:
        """Return whether it has exited, or its monitor does not answer any more."""
        try:
            self.execute("query-version")
        except DaemonGoneError:
            return True
        return False

    def _receive(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Receive messages until `wanted` accepts one; raises DaemonGoneError."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\n" not in self._buffer:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    data = self._socket.recv(1 << 16)
                except TimeoutError:
                    self.process.kill()
                    raise DaemonGoneError(f"no answer in {PATIENCE:.0f} seconds") from None
                except ConnectionResetError:
                    data = b""
                if not data:
                    raise self._gone()
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if "event" in message:
                self.events.append((message["event"], message.get("data")))
            if wanted(message):
                return message

    def _gone(self) -> DaemonGoneError:
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return DaemonGoneError("the daemon has closed its monitor, and still runs")
        return DaemonGoneError(f"the daemon has ended: {status}")
