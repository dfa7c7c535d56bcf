# SPDX-License-Identifier: Apache-2.0
"""Resizing of regular files, with preallocation of the new range.

The work is done in steps, each in a thread, so that a job can be paused or cancelled between two
steps.
"""

from __future__ import annotations

import errno
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from vhostblk.block import SECTOR
from vhostblk.block.pause import no_pause
from vhostblk.errors import reason
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.pause import Pause

    #: Runs a function in a thread.
    InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
    Flush = Callable[[], Awaitable[None]]

logger = logging.getLogger(__name__)

#: The length of a write, and of a step.
_CHUNK, _STEP = 1 << 20, 64 << 20
#: The first block of an empty file is written when the file is extended, so that the alignment for
#: direct I/O can be probed there.
_FIRST_BLOCK = 4096


async def resize(
    fd: int,
    size: int,
    mode: PreallocMode,
    in_thread: InThread,
    pause: Pause = no_pause,
    flush: Flush | None = None,
) -> None:
    """Resize a regular file to `size` bytes; raises OSError with QEMU's text.

    `flush` is required if the file is already in use: its owner must record errors of the flush. On
    an error, also one raised by `pause`, the length is restored.
    """
    old = os.fstat(fd).st_size
    if mode is PreallocMode.OFF:
        await in_thread(lambda: _truncate(fd, old, size))
        return
    if old > size:
        raise OSError(errno.ENOTSUP, "Cannot use preallocation for shrinking files")
    if mode is PreallocMode.METADATA:
        raise OSError(errno.ENOTSUP, "Unsupported preallocation mode: metadata")
    try:
        if mode is PreallocMode.FALLOC:
            await in_thread(lambda: _allocate(fd, old, size))
        else:
            await _fill(fd, old, size, in_thread, pause)
            with _Described("Could not flush file to disk"):
                await (flush() if flush is not None else in_thread(lambda: os.fsync(fd)))
    except BaseException:
        try:
            os.ftruncate(fd, old)
        except OSError as error:
            logger.error("Failed to restore old file length: %s", reason(error))
        raise


def _truncate(fd: int, old: int, size: int) -> None:
    with _Described("Could not resize file"):
        os.ftruncate(fd, size)
    if not old and size:
        _write_first_block(fd, size)


def _write_first_block(fd: int, size: int) -> None:
    length = _FIRST_BLOCK if size >= _FIRST_BLOCK else SECTOR
    try:
        os.pwrite(fd, bytes(length), 0)
    except OSError:
        return  # its user doesn't need it any more, or gets the error soon


def _allocate(fd: int, old: int, size: int) -> None:
    if size > old:
        with _Described("Could not preallocate new data"):
            os.posix_fallocate(fd, old, size - old)


async def _fill(fd: int, old: int, size: int, in_thread: InThread, pause: Pause) -> None:
    """Write zeroes; the final length is set first, so that the file system knows it."""
    with _Described("Could not resize file"):
        await in_thread(lambda: os.ftruncate(fd, size))
    for start in range(old, size, _STEP):
        stop = min(start + _STEP, size)
        with _Described("Could not write zeros for preallocation"):
            await in_thread(partial(_write_zeroes, fd, start, stop))
        await pause()


def _write_zeroes(fd: int, start: int, stop: int) -> None:
    zeroes = memoryview(bytes(min(_CHUNK, stop - start)))
    while start < stop:
        start += os.pwrite(fd, zeroes[: stop - start], start)


class _Described:
    """Adds a message to OSErrors of the block."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{self._text}: {reason(error)}") from error
        if isinstance(error, OverflowError):  # length out of range
            text = reason(errno.EINVAL)
            raise OSError(errno.EINVAL, f"{self._text}: {text}") from error
