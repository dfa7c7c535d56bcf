# SPDX-License-Identifier: Apache-2.0
"""Log lines that a peer can provoke, and therefore limited in number."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: At most so many lines ...
_BURST = 10
#: ... in so many seconds.
_PERIOD = 10.0


class Journal:
    """A logger that goes silent when it is asked too much, and says afterwards how much it missed.

    All lines share the limit; it counts in fixed periods, the first begun by the first line.
    """

    def __init__(
        self,
        logger: logging.Logger,
        prefix: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._prefix = prefix
        self._clock = clock
        self._period_end = 0.0
        self._count = 0

    def warning(self, text: str, *args: object) -> None:
        """Log what the peer did wrong."""
        self._log(logging.WARNING, text, args)

    def error(self, text: str, *args: object) -> None:
        """Log what this side can't do."""
        self._log(logging.ERROR, text, args)

    def exception(self, text: str, *args: object) -> None:
        """Log a failure of the program, with the traceback of the present exception."""
        self._log(logging.ERROR, text, args, traceback=True)

    def _log(
        self, level: int, text: str, args: tuple[object, ...], *, traceback: bool = False
    ) -> None:
        now = self._clock()
        if now >= self._period_end:
            if self._count > _BURST:
                self._logger.warning(
                    "%s%d more messages were suppressed", self._prefix, self._count - _BURST
                )
            self._period_end = now + _PERIOD
            self._count = 0
        self._count += 1
        if self._count <= _BURST:
            self._logger.log(level, self._prefix + text, *args, exc_info=traceback)
