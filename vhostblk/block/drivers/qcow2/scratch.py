# SPDX-License-Identifier: Apache-2.0
"""Memory for copies from one place of the image to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.io.iovec import IoVec, address_of
from vhostblk.engine.layouts import IOVEC

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = 4096


class Scratch:
    """Memory that is reused: allocating new pages takes longer than copying."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def windows(self, total: int, places: Sequence[tuple[int, int]]) -> list[IoVec]:
        """Return page-aligned windows of `total` bytes: start and length of each.

        They are valid until the next call, like the result of `segments`.
        """
        first = self._reserve(total)
        words = np.array(places, np.uint64).reshape(-1, 2)
        words[:, 0] += np.uint64(first)
        segments = words.view(IOVEC).reshape(-1)
        where, owner = address_of(words), (words, self._memory)
        return [
            IoVec(segments, index, 1, length, where + 16 * index, owner, first + start)
            for index, (start, length) in enumerate(places)
        ]

    def segments(self, count: int, size: int) -> tuple[IoVec, int]:
        """Return consecutive segments, the first page-aligned, and the address."""
        first = self._reserve(count * size)
        words = np.empty((count, 2), np.uint64)
        words[:, 0] = np.arange(first, first + count * size, size)
        words[:, 1] = size
        segments, owner = words.view(IOVEC).reshape(-1), (words, self._memory)
        return IoVec(segments, 0, count, count * size, address_of(words), owner), first

    def _reserve(self, total: int) -> int:
        """Reserve this many page-aligned bytes; return the address."""
        first = -(-address_of(self._memory) // _PAGE) * _PAGE
        if first + total > address_of(self._memory) + self._memory.nbytes:
            self._memory = np.empty(total + _PAGE, np.uint8)
            first = -(-address_of(self._memory) // _PAGE) * _PAGE
        return first
