# SPDX-License-Identifier: Apache-2.0
"""Runs an input's coroutine to its end, and finds what went wrong where nobody waits for it."""

from __future__ import annotations

import asyncio
import atexit
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

#: No input takes longer, in seconds; generous, as machines are slow at times.
PATIENCE = 60


class Harness:
    """An event loop of its own. Errors in the log are problems: they are swallowed exceptions."""

    def __init__(self, *, log_level: int = logging.ERROR) -> None:
        self.loop = asyncio.new_event_loop()
        atexit.register(self.loop.close)
        self.loop.set_exception_handler(self._background)
        self.problems: list[str] = []
        self._handler = _Problems(self.problems)
        self._level = log_level

    def _background(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run to the end, and a turn longer; tasks that are left are problems."""
        log = logging.getLogger("vhostblk")
        handlers, propagate, level = log.handlers, log.propagate, log.level
        log.handlers, log.propagate = [self._handler], False
        log.setLevel(self._level)
        try:
            self.loop.run_until_complete(asyncio.wait_for(main, PATIENCE))
            self.loop.run_until_complete(asyncio.sleep(0))
        finally:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        self.problems.extend(map(str, asyncio.all_tasks(self.loop)))

    def check(self) -> None:
        """Raise AssertionError where there are problems, and forget them."""
        if self.problems:
            found = "; ".join(self.problems)
            self.problems.clear()
            raise AssertionError(found)


class _Problems(logging.Handler):
    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        self._problems.append(self.format(record))
