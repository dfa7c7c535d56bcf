# SPDX-License-Identifier: Apache-2.0
"""Flushes: one at a time, each for all who have come before it began."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vhostblk.block.completion import Completion, drive

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
        """Tell all how a flush has ended; not on this stack, where one could harm the others."""
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
        async with self._image.lock:  # what somebody else is writing has to be complete, too
            await self._write_changes()

    async def _write_changes(self) -> None:
        image = self._image
        image.check_usable()
        if image.writable and image.commit.dirty:
            await image.commit.write()


def _raise(_result: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
