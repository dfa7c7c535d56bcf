# SPDX-License-Identifier: Apache-2.0
"""`AioEngine`: I/O on files without blocking the loop.

There are two kinds: `uring` (io_uring, through the compiled core) and `threads`; `engines` has the
open ones. All methods are called on the loop's thread.

Operations return a `Completion` whose result is that of the system call: a count or 0, or a
negative errno (also EAGAIN and EINTR; the caller then tries again). They start at the end of the
loop's current iteration at the latest, so that a burst costs one system call. A caller may
`flush()` after a burst to start them at once. The engine keeps the memory of an `IoVec` alive until
its operation has ended.
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
    """An engine of this kind is not available; the text is the reason."""


class AioEngine(ABC):
    """One engine of one event loop; opened in `__init__`."""

    #: The kind, as in the option `aio`.
    kind: BlockdevAioOptions

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        #: Number of nodes that use the engine; see `engines`.
        self.users = 0
        #: Submit when this many operations are queued.
        self._max_batch = 128
        self._flush_scheduled = False

    @abstractmethod
    def preadv(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        """Read into memory, possibly less than requested."""

    @abstractmethod
    def pwritev(self, fd: int, iov: IoVec, offset: int) -> Completion[int]:
        """Write from memory, possibly less than requested."""

    @abstractmethod
    def fdatasync(self, fd: int) -> Completion[int]:
        """Flush the file's data to stable storage."""

    @abstractmethod
    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> Completion[int]:
        """Change the allocation of a range; `mode` is FALLOC_FL_*."""

    @abstractmethod
    def flush(self) -> None:
        """Start the queued operations."""

    @abstractmethod
    async def close(self) -> None:
        """Close the engine; no operation is in flight."""

    async def call(self, function: Callable[[], T]) -> T:
        """Run a rare blocking call (an ioctl, lseek) on a thread."""
        return await self.loop.run_in_executor(None, function)

    def limit_batch(self, operations: int) -> None:
        """Apply a node's option `aio-max-batch`; 0: not set."""
        if operations > 0:
            self._max_batch = min(self._max_batch, operations)

    def _complete(self, completion: Completion[int], result: int) -> None:
        """Complete an operation. An exception in its callback must not affect other operations."""
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
        if self._flush_scheduled:  # neither flushed nor closed in the meantime
            self.flush()
