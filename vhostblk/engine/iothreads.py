# SPDX-License-Identifier: Apache-2.0
"""The iothreads of a daemon, by name: started when the first queue needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.engine.iothread import Iothread, IothreadOptions
from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Runs the queues of exports that name no iothread; no object can have this name.
DEFAULT_NAME = "#default"


class Iothreads:
    """Named iothreads and their options.

    Threads start late: processes fork when they daemonize, and start-up is short.
    """

    def __init__(self) -> None:
        self._options: dict[str, IothreadOptions] = {}
        self._running: dict[str, Iothread] = {}

    def define(self, name: str, options: IothreadOptions) -> None:
        """Add an iothread; the caller has made sure that the name is free."""
        self._options[name] = options

    def change(self, name: str, options: IothreadOptions) -> None:
        """Change a defined iothread. A running one polls differently at once.

        Batch and pool sizes are those that the thread started with.
        """
        self._options[name] = options
        running = self._running.get(name)
        if running is not None:
            running.set_polling(options)

    def remove(self, name: str) -> None:
        """Stop and forget an iothread that no queue uses."""
        del self._options[name]
        running = self._running.pop(name, None)
        if running is not None:
            running.close()

    def start(self, names: Sequence[str]) -> list[Iothread]:
        """Return running iothreads, the default one where no name is given."""
        return [self._start(name) for name in names or [DEFAULT_NAME]]

    def _start(self, name: str) -> Iothread:
        running = self._running.get(name)
        if running is None:
            if name != DEFAULT_NAME:
                self.check(name)
            options = self._options.get(name, IothreadOptions())
            running = self._running[name] = Iothread(name, options)
        return running

    def check(self, name: str) -> None:
        """Raise VhostblkError where there is no such iothread."""
        if name not in self._options:
            raise VhostblkError(f'iothread "{name}" not found')

    def close(self) -> None:
        """Stop all threads; nothing uses them any more."""
        for iothread in self._running.values():
            iothread.close()
        self._running.clear()
