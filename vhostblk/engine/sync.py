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
    """The turn to sync an open file, shared by the event loop and the iothreads.

    Only one may sync at a time, because the kernel reports lost data only once. Extent maps refer
    to it (`ExtentMap.sync`). On the event loop, the caller makes sure that one coroutine uses it.
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
        """Take the turn; wait for an iothread that has it. Must not be cancelled."""
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
        """Give the turn back, after `error` was set if there was one."""
        if self.handle is not None:
            self._lib.vb_sync_end(self.handle, self._lib.VB_SYNC_PYTHON)

    def close(self) -> None:
        """Close the eventfd; nobody uses the file any more."""
        fd, self._memory[_EVENT_FD] = self._memory[_EVENT_FD], -1
        if fd >= 0:
            os.close(fd)
