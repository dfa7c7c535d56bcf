# SPDX-License-Identifier: Apache-2.0
"""Sparse files: image files are tens of megabytes long, and little of that is data."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# fallocate(2) modes, from <linux/falloc.h>.
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02

_libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole, which reads as zeroes."""
    mode = _KEEP_SIZE | _PUNCH_HOLE
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def runs(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each run of data in a file."""
    size, place = os.fstat(fd).st_size, 0
    while place < size:
        try:
            place = os.lseek(fd, place, os.SEEK_DATA)
        except OSError:  # no more data
            return
        stop = os.lseek(fd, place, os.SEEK_HOLE)
        yield place, stop
        place = stop


class Content:
    """The content of a file: its length, and its runs of data."""

    def __init__(self, path: Path | None = None) -> None:
        """Read a file; None: an empty one."""
        self.size = 0
        self.data: list[tuple[int, NDArray[np.uint8]]] = []
        if path is not None:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                for start, stop in runs(file.fileno()):
                    data = os.pread(file.fileno(), stop - start, start)
                    self.data.append((start, np.frombuffer(data, np.uint8)))

    def copy_to(self, target: NDArray[np.uint8]) -> None:
        """Copy the data to an array of zeroes."""
        for start, data in self.data:
            target[start : start + len(data)] = data


def load(path: Path) -> NDArray[np.uint8]:
    """Return the content of a file; holes take no memory."""
    content = Content(path)
    loaded = np.zeros(content.size, np.uint8)
    content.copy_to(loaded)
    return loaded


def save(content: NDArray[np.uint8], path: Path) -> None:
    """Write a file; blocks of zeroes become holes."""
    block = 4096
    with path.open("wb") as file:
        os.truncate(file.fileno(), len(content))
        whole = len(content) // block * block
        used = np.flatnonzero(content[:whole].view(np.uint64).reshape(-1, block // 8).any(axis=1))
        for run in np.split(used, np.flatnonzero(np.diff(used) != 1) + 1):
            if len(run):
                low, high = int(run[0]) * block, (int(run[-1]) + 1) * block
                os.pwrite(file.fileno(), content[low:high].tobytes(), low)
        if whole < len(content):
            os.pwrite(file.fileno(), content[whole:].tobytes(), whole)


def copy(source: Path, target: Path) -> None:
    """Copy a file, holes as holes."""
    with source.open("rb") as read, target.open("wb") as write:
        os.truncate(write.fileno(), os.fstat(read.fileno()).st_size)
        for start, stop in runs(read.fileno()):
            os.pwrite(write.fileno(), os.pread(read.fileno(), stop - start, start), start)
