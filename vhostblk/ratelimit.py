# SPDX-License-Identifier: Apache-2.0
"""Rate limit for messages that an untrusted peer can cause, so that it can't fill the disk.

Each source has a token bucket: a few lines at once, then one every few seconds, with the number of
messages that were suppressed.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Number of lines at once, and seconds for each further line.
BURST = 5
SECONDS_A_LINE = 5.0


class RateLimitedLogger:
    """A rate limit in front of `logger`, with `prefix` before each message."""

    def __init__(
        self,
        logger: logging.Logger,
        prefix: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self.prefix = prefix
        self._clock = clock
        self._tokens = float(BURST)
        self._last = clock()
        self._suppressed = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a fault of a peer, or a failed request."""
        if self._admit():
            self._log(logging.WARNING, message, arguments)

    def error(self, message: str, *arguments: object, exc_info: BaseException) -> None:
        """Log an error of our own, with its traceback."""
        if self._admit():
            self._log(logging.ERROR, message, arguments, exc_info)

    def _admit(self) -> bool:
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._last) / SECONDS_A_LINE)
        self._last = now
        if self._tokens < 1:
            self._suppressed += 1
            return False
        self._tokens -= 1
        return True

    def _log(
        self,
        level: int,
        message: str,
        arguments: tuple[object, ...],
        exc_info: BaseException | None = None,
    ) -> None:
        left_out, self._suppressed = self._suppressed, 0
        note = f" ({left_out} similar messages left out)" if left_out else ""
        parts = {
            "subject": self.prefix.removesuffix(": "),
            "bare_message": message % arguments if arguments else message,
            "left_out": left_out,
        }
        text = f"%s{message}%s"
        self._logger.log(level, text, self.prefix, *arguments, note, exc_info=exc_info, extra=parts)
