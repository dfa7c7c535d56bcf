# SPDX-License-Identifier: Apache-2.0
"""Long work on images in turns: other tasks run in between, and the log shows the progress."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image

logger = logging.getLogger(__name__)

#: Seconds of a turn, and between two messages.
_TURN, _REPORT = 0.005, 5.0


class Pace:
    """The turns of one piece of work. It has steps, each with a known number of items."""

    def __init__(self, image: Image, what: str) -> None:
        self._name = image.file.node.filename
        self._what = what
        self._step = ""
        self._done = self._total = 0
        self._turn = self._reported = time.monotonic()

    def begin(self, step: str, total: int) -> None:
        """Begin a step of `total` items."""
        self._step, self._done, self._total = step, 0, total

    async def turn(self, done: int = 1) -> None:
        """Count finished items; let other tasks run if this turn has been long enough."""
        self._done += done
        now = time.monotonic()
        if now - self._turn < _TURN:
            return
        if now - self._reported >= _REPORT:
            self._reported = now
            share = 100 * self._done // max(self._total, 1)
            # A warning, to be visible: guests may be waiting.
            logger.warning("%s: %s: %s, %d %% done", self._name, self._what, self._step, share)
        await asyncio.sleep(0)
        self._turn = time.monotonic()
