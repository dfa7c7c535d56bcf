# SPDX-License-Identifier: Apache-2.0
"""The iothreads of a daemon, by name: started when the first queue needs them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.engine.iothread import Iothread, IothreadOptions
from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Runs the queues of exports that name no iothread; no object can have this name.
DEFAULT_NAME = "#default"

#: How often it is looked whether threads are stuck.
WATCH_SECONDS = 2.0


class IothreadStuckError(VhostblkError):
    """An iothread is in a system call that does not end; the text says in which."""


class Iothreads:
    """Named iothreads and their options.

    Threads start late: processes fork when they daemonize, and start-up is short.
    """

    def __init__(self) -> None:
        self._options: dict[str, IothreadOptions] = {}
        self._running: dict[str, Iothread] = {}
        self._watch_handle: asyncio.TimerHandle | None = None

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
            if self._watch_handle is None:
                self._watch()
        return running

    def check(self, name: str) -> None:
        """Raise VhostblkError where there is no such iothread."""
        if name not in self._options:
            raise VhostblkError(f'iothread "{name}" not found')

    def _watch(self) -> None:
        """Look at the running threads, now and then."""
        loop = asyncio.get_running_loop()
        for iothread in self._running.values():
            iothread.watch(loop.time())
        self._watch_handle = None
        if self._running:
            self._watch_handle = loop.call_later(WATCH_SECONDS, self._watch)

    @property
    def stuck(self) -> list[str]:
        """What threads are stuck in, as messages."""
        return [iothread.stuck for iothread in self._running.values() if iothread.stuck is not None]

    def close(self) -> None:
        """Stop all threads, which nothing uses any more, but for those that are stuck."""
        if self._watch_handle is not None:
            self._watch_handle.cancel()
            self._watch_handle = None
        for iothread in self._running.values():
            if iothread.stuck is None:
                iothread.close()
        self._running.clear()
