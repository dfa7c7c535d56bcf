# SPDX-License-Identifier: Apache-2.0
"""The log on the standard error, which nobody may be reading.

A pipe or a terminal that is not read would stop the thread that logs, and with it the event loop or
the thread that accepts connections. So what can't be written at once is lost.
"""

from __future__ import annotations

import io
import logging
import os
import select
from typing import Any

#: A pipe that can be written to takes this many bytes at once (pipe(7), PIPE_BUF).
_PIECE = 4096


class StderrHandler(logging.StreamHandler[Any]):
    """Writes records that the standard error takes at once, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        try:
            fd = self.stream.fileno()
        except (io.UnsupportedOperation, ValueError):  # not a file, or closed
            super().emit(record)
            return
        try:
            text = self.format(record) + self.terminator
            if self._lost:
                text = f"({self._lost} messages were lost, as nobody read them)\n{text}"
            if _write(fd, text.encode(errors="backslashreplace")):
                self._lost = 0
            else:
                self._lost += 1
        except Exception:
            self.handleError(record)


def _write(fd: int, data: bytes) -> bool:
    """Write without waiting; return whether the first piece was written."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    for start in range(0, len(data), _PIECE):
        events = poller.poll(0)
        if not events or not events[0][1] & select.POLLOUT:
            return start > 0
        os.write(fd, data[start : start + _PIECE])
    return True
