# SPDX-License-Identifier: Apache-2.0
"""Changing the length of a regular file, with storage for what is added.

Done in steps, each on a thread, so that whoever waits can be paused or cancelled between two.
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

    #: Runs a function on a thread.
    InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
    Flush = Callable[[], Awaitable[None]]

logger = logging.getLogger(__name__)

#: How much is written at a time, and how much in one step.
_CHUNK, _STEP = 1 << 20, 64 << 20
#: The start of an empty file that is made longer is written, so that the alignment that direct I/O
#: needs can be tried out there.
_FIRST_BLOCK = 4096


async def resize(
    fd: int,
    size: int,
    mode: PreallocMode,
    in_thread: InThread,
    pause: Pause = no_pause,
    flush: Flush | None = None,
) -> None:
    """Make a regular file `size` bytes long; raises OSError, with QEMU's text.

    `flush` is to be used where the file is in use already: its owner has to note what it reports.
    Then it is as long as it was, also where `pause` raised something.
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
        return  # then nobody will need it, or hears of it soon


def _allocate(fd: int, old: int, size: int) -> None:
    if size > old:
        with _Described("Could not preallocate new data"):
            os.posix_fallocate(fd, old, size - old)


async def _fill(fd: int, old: int, size: int, in_thread: InThread, pause: Pause) -> None:
    """Write zeroes; the final length comes first, so that the file system knows it."""
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
    """Says of an OSError what could not be done."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{self._text}: {reason(error)}") from error
        if isinstance(error, OverflowError):  # no such length
            text = reason(errno.EINVAL)
            raise OSError(errno.EINVAL, f"{self._text}: {text}") from error
