# SPDX-License-Identifier: Apache-2.0
"""Flushes: one runs at a time, and completes all requests that came before it began."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion, drive

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image


class Flusher:
    """Puts what has been written, data and metadata, on stable storage."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._waiting: list[Completion[None]] = []
        self._running = False

    def flush(self) -> Completion[None]:
        """Put all writes that have completed on stable storage."""
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
                    await self._flush()
                except Exception as error:
                    failure = error
                self._tell(waiting, failure)
        finally:
            self._running = False

    def _tell(self, waiting: list[Completion[None]], failure: Exception | None) -> None:
        """Complete the requests of a flush.

        Each one is completed by a call of its own from the event loop, so that an exception in
        one doesn't keep the others waiting.
        """
        loop = asyncio.get_running_loop()
        for done in waiting:
            if failure is None:
                loop.call_soon(done.set_result, None)
            else:
                loop.call_soon(done.set_exception, failure)

    async def _flush(self) -> None:
        image = self._image
        async with image.lock:
            await self._write_changes()
            volatile = image.publisher.volatile
            volatile.begin()
        try:
            await image.commit.flush_files()
        except BaseException:
            volatile.failed()
            raise
        await volatile.succeeded()

    async def write_back(self) -> None:
        """Write changed metadata to the file."""
        async with self._image.lock:  # another task may be writing metadata: wait for it
            await self._write_changes()

    async def _write_changes(self) -> None:
        image = self._image
        image.check_usable()
        if image.writable and image.commit.dirty:
            await image.commit.write()


def _raise(_result: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
