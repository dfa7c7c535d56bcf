# SPDX-License-Identifier: Apache-2.0
"""`AioEngine`: how file drivers do I/O without blocking the loop, and which kind is used.

Two kinds: `uring` (io_uring, through the compiled core) and `threads`. There is one engine of a
kind for each event loop, opened by the first node that asks and closed with the last. All methods
are called on the loop's thread.

Operations return a `Completion` whose result is what the system call would have returned: a count
or 0, or a negative errno (EAGAIN and EINTR too, whereupon the caller tries again). They begin at
the end of the loop's current iteration at the latest, so that a burst costs one system call;
whoever dispatches a burst may `flush()` after it. The memory of an `IoVec` is kept alive until its
operation has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from vhostblk.block.errors import BlockError
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import BlockdevAioOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AioUnavailableError(Exception):
    """An engine of this kind doesn't work here; the text is the reason."""


class AioEngine(ABC):
    """One engine of one event loop; opened in `__init__`."""

    #: As in the `aio` option.
    kind: BlockdevAioOptions

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._users = 0
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
        return await self._loop.run_in_executor(None, function)

    def limit_batch(self, operations: int) -> None:
        """Take the `aio-max-batch` option of a node into account; 0: no opinion."""
        if operations > 0:
            self._max_batch = min(self._max_batch, operations)

    def _complete(self, completion: Completion[int], result: int) -> None:
        """Resume whoever waits; its mistakes must not cost others their completions."""
        try:
            completion.set_result(result)
        except Exception as error:
            self._loop.call_exception_handler(
                {"message": "a completion callback failed", "exception": error}
            )

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_as_scheduled)

    def _flush_as_scheduled(self) -> None:
        if self._flush_scheduled:  # neither flushed nor closed meanwhile
            self.flush()


_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[BlockdevAioOptions, AioEngine]] = (
    WeakKeyDictionary()
)
_fallback_logged = False


def acquire(option: BlockdevAioOptions | UnsetType) -> AioEngine:
    """Return the running loop's engine of a kind; pair with `release()`.

    `native` (libaio in QEMU) is served by io_uring, which does the same better. Without the option,
    io_uring is used where it works. Raises BlockError where the kind asked for doesn't.
    """
    if option is BlockdevAioOptions.THREADS:
        engine = _get(BlockdevAioOptions.THREADS)
    else:
        try:
            engine = _get(BlockdevAioOptions.IO_URING)
        except AioUnavailableError as error:
            if option is not UNSET:
                raise BlockError(
                    f"aio={option.value}: io_uring is not available: {error}"
                ) from None
            _log_fallback(error)
            engine = _get(BlockdevAioOptions.THREADS)
    engine._users += 1
    return engine


async def release(engine: AioEngine) -> None:
    """Give an engine back; the last one to do so closes it."""
    engine._users -= 1
    if engine._users == 0:
        del _engines[engine._loop][engine.kind]
        await engine.close()


def _get(kind: BlockdevAioOptions) -> AioEngine:
    engines = _engines.setdefault(asyncio.get_running_loop(), {})
    if kind not in engines:
        engines[kind] = _open(kind)
    return engines[kind]


def _open(kind: BlockdevAioOptions) -> AioEngine:
    if kind is BlockdevAioOptions.THREADS:
        from vhostblk.block.aio.threads import ThreadsEngine

        return ThreadsEngine()
    if os.environ.get("VHOSTBLK_IO_URING") == "off":
        raise AioUnavailableError("switched off by VHOSTBLK_IO_URING=off")
    from vhostblk.block.aio.uring import UringEngine

    return UringEngine()


def _log_fallback(reason: AioUnavailableError) -> None:
    global _fallback_logged
    if not _fallback_logged:
        _fallback_logged = True
        logger.warning("io_uring is not available (%s): file I/O uses a pool of threads", reason)
