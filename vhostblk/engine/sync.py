# SPDX-License-Identifier: Apache-2.0
"""`FileSync`: the Python face of `struct vb_sync`."""

from __future__ import annotations

import asyncio
import os
from array import array
from typing import Any

from vhostblk.engine import load

_ERROR, _HOLDERS, _EVENT_FD = range(3)


class FileSync:
    """What all share who bring an open file's data to storage.

    They take turns, because the kernel reports lost data to one of them only. An extent map refers
    to it (`ExtentMap.sync`), so iothreads take part. Here, one caller at a time.
    """

    def __init__(self) -> None:
        self._memory = array("i", [0, 0, -1])
        engine = load()
        #: A `struct vb_sync *`; None without an engine.
        self.handle: Any = None
        if engine is not None:
            self.handle = engine.ffi.from_buffer("struct vb_sync *", self._memory)
            self._lib = engine.lib

    @property
    def error(self) -> int:
        """The errno of the operation that failed, or 0."""
        return self._memory[_ERROR]

    @error.setter
    def error(self, value: int) -> None:
        self._memory[_ERROR] = value

    async def begin(self) -> None:
        """Wait until no iothread syncs the file; none begins before `end`. Not to be cancelled."""
        if self.handle is None or self._lib.vb_sync_try(self.handle, self._lib.VB_SYNC_PYTHON):
            return
        fd = self._memory[_EVENT_FD]
        if fd < 0:
            fd = self._memory[_EVENT_FD] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self._lib.vb_sync_claim(self.handle):
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def on_end() -> None:
            loop.remove_reader(fd)
            os.eventfd_read(fd)
            ended.set_result(None)

        loop.add_reader(fd, on_end)
        await ended

    def end(self) -> None:
        """Let others sync the file; the outcome has been noted."""
        if self.handle is not None:
            self._lib.vb_sync_end(self.handle, self._lib.VB_SYNC_PYTHON)

    def close(self) -> None:
        """Close what `begin` has opened; nobody uses the file any more."""
        fd, self._memory[_EVENT_FD] = self._memory[_EVENT_FD], -1
        if fd >= 0:
            os.close(fd)
