# SPDX-License-Identifier: Apache-2.0
"""A timer on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

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
    """Make the best timer that there is."""
    return LoopTimer(callback)


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
