# SPDX-License-Identifier: Apache-2.0
"""`AioEngine`: how file drivers do I/O without blocking the loop.

Two kinds: `uring` (io_uring, through the compiled core) and `threads`; `engines` has those that are
open. All methods are called on the loop's thread.

Operations return a `Completion` whose result is what the system call would have returned: a count
or 0, or a negative errno (EAGAIN and EINTR too, whereupon the caller tries again). They begin at
the end of the loop's current iteration at the latest, so that a burst costs one system call;
whoever dispatches a burst may `flush()` after it. The memory of an `IoVec` is kept alive until its
operation has ended.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.schema.common import BlockdevAioOptions

T = TypeVar("T")


class AioUnavailableError(Exception):
    """An engine of this kind doesn't work here; the text is the reason."""


class AioEngine(ABC):
    """One engine of one event loop; opened in `__init__`."""

    #: As in the `aio` option.
    kind: BlockdevAioOptions

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        #: How many nodes use it; see `engines`.
        self.users = 0
        #: Submit as soon as this many operations are queued.
        self._max_batch = 128
        self._flush_scheduled = False

    @abstractmethod
    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        """Read as the system call does: perhaps less than asked for."""

    @abstractmethod
    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        """Write as the system call does: perhaps less than asked for."""

    @abstractmethod
    def fdatasync(self, fd: int) -> Completion[int]:
        """Put data written to the file on stable storage."""

    @abstractmethod
    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        """Change what storage a range has; `mode` is FALLOC_FL_*."""

    @abstractmethod
    def flush(self) -> None:
        """Start what has been queued."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; no operation is in flight."""

    async def call(self, function: Callable[[], T]) -> T:
        """Run a rare blocking call (an ioctl, lseek) on a thread."""
        return await self.loop.run_in_executor(None, function)

    def limit_batch(self, operations: int) -> None:
        """Take the `aio-max-batch` option of a node into account; 0: no opinion."""
        if operations > 0:
            self._max_batch = min(self._max_batch, operations)

    def _complete(self, completion: Completion[int], result: int) -> None:
        """Resume whoever waits; its mistakes must not cost others their completions."""
        try:
            completion.set_result(result)
        except Exception as error:
            self.loop.call_exception_handler(
                {"message": "a completion callback failed", "exception": error}
            )

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_as_scheduled)

    def _flush_as_scheduled(self) -> None:
        if self._flush_scheduled:  # neither flushed nor closed meanwhile
            self.flush()
