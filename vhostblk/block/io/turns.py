# SPDX-License-Identifier: Apache-2.0
"""Commands that change the graph take turns, also across what they wait for."""

from __future__ import annotations

import asyncio


class Turns:
    """A lock; the task that holds it may take it again, for a command that is made of others."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[object] | None = None
        self._depth = 0

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None or task is not self._holder:
            await self._lock.acquire()
            self._holder = task
        self._depth += 1

    async def __aexit__(self, *_exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
            self._lock.release()
