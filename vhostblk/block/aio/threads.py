# SPDX-License-Identifier: Apache-2.0
"""File I/O in a thread pool, if io_uring is not available.

The operations of a burst are distributed in batches, so that threads and the loop are woken once
for each batch and not for each operation.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `AioEngine`.

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vhostblk import engine as core
from vhostblk.block.aio.engine import AioEngine
from vhostblk.block.io.completion import Completion
from vhostblk.errors import errno_of, is_internal, log_error
from vhostblk.schema.common import BlockdevAioOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.io.iovec import IoVec

logger = logging.getLogger(__name__)

#: Enough for the parallelism of ordinary disks.
MAX_THREADS = 16

_Operation = tuple[Completion[int], "Callable[..., int]", tuple[Any, ...]]


class ThreadsEngine(AioEngine):
    """A pool whose threads are started when bursts need them and stay until the engine closes."""

    kind = BlockdevAioOptions.THREADS

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[_Operation] = []
        self._batches: SimpleQueue[list[_Operation] | None] = SimpleQueue()
        self._done: deque[tuple[Completion[int], int]] = deque()
        self._woken = False
        self._in_flight = 0
        self._threads: list[threading.Thread] = []
        compiled = core.load()
        self._lib: Any = compiled.lib if compiled is not None else None

    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        if self._lib is not None:
            return self._queue(self._compiled, self._lib.vb_preadv, fd, iov, offset)
        return self._queue(_preadv, fd, iov, offset)

    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        if self._lib is not None:
            return self._queue(self._compiled, self._lib.vb_pwritev, fd, iov, offset)
        return self._queue(_pwritev, fd, iov, offset)

    def fdatasync(self, fd: int) -> Completion[int]:
        return self._queue(_fdatasync, fd)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        return self._queue(_fallocate, fd, mode, offset, length)

    def _queue(self, function: Callable[..., int], *arguments: Any) -> Completion[int]:
        completion: Completion[int] = Completion()
        self._pending.append((completion, function, arguments))
        if len(self._pending) >= self._max_batch:
            self._deal()
        elif not self._flush_scheduled:
            self._schedule_flush()
        return completion

    def flush(self) -> None:
        self._flush_scheduled = False
        if self._pending:
            self._deal()

    def _deal(self) -> None:
        """Distribute the queued operations."""
        pending, self._pending = self._pending, []
        self._in_flight += len(pending)
        share = -(-len(pending) // MAX_THREADS)
        for first in range(0, len(pending), share):
            self._batches.put(pending[first : first + share])
        wanted = min(MAX_THREADS, self._in_flight)
        while len(self._threads) < wanted:
            thread = threading.Thread(
                target=self._work, name=f"vhostblk-aio-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """Main function of a thread."""
        while (batch := self._batches.get()) is not None:
            for completion, function, arguments in batch:
                try:
                    result = function(*arguments)
                except Exception as error:
                    if is_internal(error):
                        log_error(logger, "I/O", error)
                    result = -errno_of(error)
                self._done.append((completion, result))
            # `_reap` clears the flag before it looks, so it misses nothing.
            if not self._woken:
                self._woken = True
                self.loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        self._woken = False
        while self._done:
            completion, result = self._done.popleft()
            self._in_flight -= 1
            self._complete(completion, result)

    def _compiled(self, function: Any, fd: int, iov: IoVec, offset: int) -> int:
        return int(function(fd, iov.address, iov.count, offset, 0))

    async def close(self) -> None:
        assert not self._in_flight, "closed with operations in flight"
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()


def _preadv(fd: int, iov: IoVec, offset: int) -> int:
    return os.preadv(fd, iov.memoryviews(), offset)


def _pwritev(fd: int, iov: IoVec, offset: int) -> int:
    return os.pwritev(fd, iov.memoryviews(), offset)


def _fdatasync(fd: int) -> int:
    os.fdatasync(fd)
    return 0


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2) with a mode, which the standard library doesn't have."""
    if _libc.fallocate(fd, mode, offset, length) == 0:
        return 0
    return -ctypes.get_errno()
