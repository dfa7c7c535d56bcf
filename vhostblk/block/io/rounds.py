# SPDX-License-Identifier: Apache-2.0
"""`Rounds`: an operation that runs once at a time, each time for all who asked before it began."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Rounds:
    """Runs an operation, such as a flush, in rounds.

    Who asks while a round runs takes part in the next one, together with all others who ask
    meanwhile. A round goes on to its end if a caller is cancelled, so its outcome is never missed.
    """

    def __init__(self, operation: Callable[[], Coroutine[object, None, None]]) -> None:
        self._operation = operation
        self._waiting: list[Completion[None]] = []
        self._running = False

    def join(self) -> Completion[None]:
        """Take part in the next round; the completion has its outcome."""
        done: Completion[None] = Completion()
        self._waiting.append(done)
        if not self._running:
            self._running = True
            drive(self._run(), _raise)
        return done

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                failure: Exception | None = None
                try:
                    await self._operation()
                except Exception as error:
                    failure = error
                _tell(waiting, failure)
        finally:
            self._running = False


def _tell(waiting: list[Completion[None]], failure: Exception | None) -> None:
    """Tell all how a round has ended; not on this stack, where one could harm the others."""
    loop = asyncio.get_running_loop()
    for done in waiting:
        if failure is None:
            loop.call_soon(done.set_result, None)
        else:
            loop.call_soon(done.set_exception, failure)


def _raise(_result: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
