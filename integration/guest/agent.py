# SPDX-License-Identifier: Apache-2.0
"""Runs shell steps in the guest over its second serial port. `init.sh` is the other end."""

from __future__ import annotations

import base64
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from integration.guest.errors import GuestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_READY = "READY"
_BEGUN = "BEGUN"
_DONE = "DONE"


@dataclass(frozen=True)
class Step:
    """A step that the guest has finished."""

    name: str
    status: int
    output: str


class Agent:
    """One step at a time: `start` sends it, `finish` waits for it.

    `explain` gives what is added to an error, the end of the console as a rule; `diagnose` what is
    added where the guest does not answer.
    """

    def __init__(
        self, channel: socket.socket, explain: Callable[[], str], diagnose: Callable[[], str]
    ) -> None:
        self._channel = channel
        self._explain = explain
        self._diagnose = diagnose
        self._received = b""
        self._running: str | None = None
        self._count = 0

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has booted; whatever came before on the line is dropped."""
        deadline = time.monotonic() + timeout
        self._running = None
        while self._line("boot", deadline) != _READY:
            pass

    def start(self, script: str, name: str = "") -> None:
        """Send a step without waiting for its end."""
        if self._running is not None:
            raise GuestError(f"step {self._running} is still running")
        self._count += 1
        self._running = f"{self._count}-{name or 'step'}".replace(" ", "-")
        encoded = base64.b64encode(script.encode()).decode()
        self._channel.sendall(f"{self._running} {encoded}\n".encode())

    def begun(self, timeout: float) -> None:
        """Wait until the guest has the whole step: what it has not read yet can't migrate."""
        self._told(_BEGUN, timeout)

    def finish(self, timeout: float) -> Step:
        """Wait for the end of the step; a failed one is an error."""
        name, words = self._told(_DONE, timeout)
        self._running = None
        step = Step(name, int(words[2]), base64.b64decode(words[3]).decode(errors="replace"))
        if step.status:
            raise GuestError(
                f"step {name} ended with status {step.status}:\n{step.output}{self._explain()}"
            )
        return step

    def _told(self, what: str, timeout: float) -> tuple[str, list[str]]:
        """Wait for a line of the guest about the running step; return the step, and the words."""
        name = self._running
        if name is None:
            raise GuestError("no step is running")
        deadline = time.monotonic() + timeout
        while True:
            words = self._line(f"step {name}", deadline).split(" ")
            if words[:2] == [what, name]:
                return name, words

    def go_on_from(self, former: Agent) -> None:
        """Take over the step of an agent whose machine the guest has left, and has ended."""
        while data := former._receive():
            former._received += data
        self._received = former._received
        self._running, self._count = former._running, former._count

    def _line(self, what: str, deadline: float) -> str:
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._channel], [], [], left)[0]:
                told = self._explain() + self._diagnose()
                raise GuestError(f"{what}: no answer from the guest in time{told}")
            data = self._receive()
            if not data:
                raise GuestError(f"{what}: the guest is gone{self._explain()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace").strip("\r\0")

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except ConnectionError:
            return b""
