# SPDX-License-Identifier: Apache-2.0
"""Flushes: one runs at a time, and completes all requests made before it began."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.io.rounds import Rounds

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.io.completion import Completion


class Flusher:
    """Puts completed writes, data and metadata, on stable storage."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._rounds = Rounds(self._flush)

    def flush(self) -> Completion[None]:
        """Put all completed writes on stable storage."""
        return self._rounds.join()

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
        async with self._image.lock:  # wait for another task that may be writing metadata
            await self._write_changes()

    async def _write_changes(self) -> None:
        image = self._image
        image.check_usable()
        if image.writable and image.commit.dirty:
            await image.commit.write()
