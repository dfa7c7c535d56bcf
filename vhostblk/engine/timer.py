# SPDX-License-Identifier: Apache-2.0
"""A timer on the event loop."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Protocol

from vhostblk.engine import load
from vhostblk.errors import VhostblkError, reason

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """Calls back once, some time after it was set; on the event loop's thread."""

    def set(self, wait: int) -> None:
        """Call back in `wait` ns, and not when it was to before."""

    def cancel(self) -> None:
        """Don't call back."""

    def close(self) -> None:
        """Cancel, and release everything."""


def make_timer(callback: Callable[[], object]) -> Timer:
    """Make the best timer that there is; raises VhostblkError."""
    engine = load()
    return LoopTimer(callback) if engine is None else PreciseTimer(engine.lib, callback)


class PreciseTimer:
    """A timer of the system's, good to some microseconds (`src/timer.c`)."""

    def __init__(self, lib: Any, callback: Callable[[], object]) -> None:
        self._lib = lib
        self._callback = callback
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd: int = lib.vb_timer_new()
        if self._fd < 0:
            raise VhostblkError(f"can't make a timer: {reason(-self._fd)}")

    def set(self, wait: int) -> None:
        """Call back in `wait` ns."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._expired)
        self._lib.vb_timer_set(self._fd, max(wait, 1))

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # cancelled or set again meanwhile
            return
        self._callback()

    def cancel(self) -> None:
        """Don't call back."""
        if self._loop is not None:
            self._lib.vb_timer_set(self._fd, 0)

    def close(self) -> None:
        """Cancel, and close the descriptor."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)


class LoopTimer:
    """A timer of the event loop, which waits in whole milliseconds."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, wait: int) -> None:
        """Call back in `wait` ns."""
        self.cancel()
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(wait / 1e9, self._callback)

    def cancel(self) -> None:
        """Don't call back."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Cancel."""
        self.cancel()
