# SPDX-License-Identifier: Apache-2.0
"""The states that a power cut may leave of a recorded file.

A write that was complete when a flush started survives once that flush has ended. Of any other
write, all sectors, some or none may survive; any other change of the file's length may survive or
not.
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
    """What happens to writes that were not flushed."""

    #: All survive: the process was killed, and the machine keeps running.
    KILLED = "killed"
    #: None of them survives.
    NONE = "none"
    #: Each may survive, as a whole or in part.
    SOME = "some"


class _Content:
    """A file's content while changes are applied."""

    def __init__(self, before: sparse.Content, longest: int) -> None:
        self._bytes = np.zeros(max(longest, before.size), np.uint8)
        before.copy_to(self._bytes)
        self._length = before.size

    def apply(self, offset: int, data: bytes | None) -> None:
        if data is None:
            self._bytes[offset : self._length] = 0  # no effect if the file gets longer
            self._length = offset
            return
        self._bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._length = max(self._length, offset + len(data))

    def take(self) -> NDArray[np.uint8]:
        return self._bytes[: self._length]


def state(file: StoreFile, time: int, cut: Cut, rng: random.Random) -> NDArray[np.uint8]:
    """Return the content of a file as a power cut at time `time` may leave it."""
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
