# SPDX-License-Identifier: Apache-2.0
"""What a power cut may leave of a recorded file.

What was complete when a flush started is there once that flush has ended. Of everything else each
write may be there, or not, or some of its sectors; likewise each change of the file's length.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from tests.model.content import SECTOR

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    from tests.model import sparse
    from tests.model.store import StoreFile, Written


class Cut(Enum):
    """What becomes of writes that were not flushed."""

    #: They are there: the process was killed, and the machine runs on.
    KILLED = "killed"
    #: None of them is there.
    NONE = "none"
    #: Each may be there, as a whole or in part.
    SOME = "some"


class _Content:
    """A file's content while changes are applied."""

    def __init__(self, before: sparse.Content, longest: int) -> None:
        self._bytes = np.zeros(max(longest, before.size), np.uint8)
        before.copy_to(self._bytes)
        self._length = before.size

    def apply(self, offset: int, data: bytes | None) -> None:
        if data is None:
            self._bytes[offset : self._length] = 0  # nothing, where it gets longer
            self._length = offset
            return
        self._bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._length = max(self._length, offset + len(data))

    def take(self) -> NDArray[np.uint8]:
        return self._bytes[: self._length]


def state(file: StoreFile, time: int, cut: Cut, rng: random.Random) -> NDArray[np.uint8]:
    """Return a file as a power cut at that time may leave it."""
    changes = [each for each in file.log if each.time <= time]
    flushed = max((each.start for each in file.flushes if each.end <= time), default=-1)
    longest = max((each.offset + len(each.data or b"") for each in changes), default=0)
    content = _Content(file.before, longest)
    for each in changes:
        if each.durable or each.done <= flushed or cut is Cut.KILLED:
            content.apply(each.offset, each.data)
        elif cut is Cut.SOME and rng.random() < 0.5:
            _apply_some(content, each, rng)
    return content.take()


def _apply_some(content: _Content, change: Written, rng: random.Random) -> None:
    """Apply all of a change, or some of its sectors."""
    offset, data = change.offset, change.data
    if data is None or rng.random() < 0.7:
        content.apply(offset, data)
        return
    stop = offset + len(data)
    for start in range(offset - offset % SECTOR, stop, SECTOR):
        low, high = max(start, offset), min(start + SECTOR, stop)
        if rng.random() < 0.5:
            content.apply(low, data[low - offset : high - offset])
