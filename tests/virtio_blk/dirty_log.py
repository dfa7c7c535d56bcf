# SPDX-License-Identifier: Apache-2.0
"""A front-end's dirty log, and guest memory compared page by page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.virtqueue.config import LogDescription
from vhostblk.virtqueue.dirty_log import LOG_PAGE

if TYPE_CHECKING:
    from tests.frontend.memory import Memory


class Log:
    """A log of `size` bytes."""

    def __init__(self, size: int, offset: int = 4096) -> None:
        self.size, self.offset = size, offset
        self._fd = os.memfd_create("log")
        os.ftruncate(self._fd, offset + size)

    def describe(self) -> LogDescription:
        return LogDescription(self.size, self.offset, os.dup(self._fd))

    def take(self) -> set[int]:
        """Return the pages noted, and forget them."""
        raw = np.frombuffer(os.pread(self._fd, self.size, self.offset), np.uint8)
        os.pwrite(self._fd, bytes(self.size), self.offset)
        return set(np.flatnonzero(np.unpackbits(raw, bitorder="little")).tolist())

    def truncate(self) -> None:
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)


def pages(addr: int, length: int) -> set[int]:
    """Return the pages of a range."""
    return set(range(addr // LOG_PAGE, (addr + length - 1) // LOG_PAGE + 1)) if length else set()


def snapshot(guest: Memory) -> dict[int, bytes]:
    """Return the content of every page."""
    memory = {}
    for region in guest.describe():
        for addr in range(region.guest_addr, region.guest_addr + region.size, LOG_PAGE):
            memory[addr // LOG_PAGE] = guest.read(addr, LOG_PAGE)
    return memory


def changed(before: dict[int, bytes], after: dict[int, bytes]) -> set[int]:
    return {page for page, content in before.items() if after[page] != content}
