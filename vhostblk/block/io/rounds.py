# SPDX-License-Identifier: Apache-2.0
"""`Rounds`: one run of an operation for all callers that wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Rounds:
    """Runs an operation, such as a flush, in rounds, one at a time.

    A call during a round waits for the next round, together with all other such calls. Cancelling a
    caller doesn't cancel the round, so its error is never lost.
    """

    def __init__(self, operation: Callable[[], Coroutine[object, None, None]]) -> None:
        self._operation = operation
        self._waiting: list[Completion[None]] = []
        self._running = False

    def join(self) -> Completion[None]:
        """Join the next round; return a completion for its result."""
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
                _complete_all(waiting, failure)
        finally:
            self._running = False


def _complete_all(waiting: list[Completion[None]], failure: Exception | None) -> None:
    """Complete the callers of a round.

    Each caller is completed in its own callback of the event loop, so that an exception in one
    doesn't affect the others.
    """
    loop = asyncio.get_running_loop()
    for done in waiting:
        if failure is None:
            loop.call_soon(done.set_result, None)
        else:
            loop.call_soon(done.set_exception, failure)


def _raise(_result: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
