# SPDX-License-Identifier: Apache-2.0
"""A re-entrant lock for commands that change the graph."""

from __future__ import annotations

import asyncio


class Turns:
    """A lock that its holder, a task, may take again, for commands composed of other commands."""

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
