# SPDX-License-Identifier: Apache-2.0
"""Writes that exclude each other run one after the other, and many are entered quickly."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from vhostblk.block.io.completion import drive
from vhostblk.block.io.tracker import TrackedWrite, WriteTracker

if TYPE_CHECKING:
    import pytest

_BLOCK = 4096
#: Few offsets, at the edges of the tracker's parts; and very long writes.
_EDGES = [part * (1 << 14) + off for part in (0, 1, 2, 80, 200) for off in (-512, 0, 512)]
_RANGES = st.tuples(
    st.sampled_from([edge for edge in _EDGES if edge >= 0]),
    st.sampled_from([512, 4096, 1 << 14, 5 << 14, 70 << 14, 1 << 62]),
)
#: Steps: enter a write, or end the write with this number, if it runs.
_STEPS = st.lists(st.one_of(st.tuples(_RANGES, st.booleans()), st.integers(0, 20)), max_size=40)


class _Entered:
    """A write that was entered."""

    def __init__(self, tracker: WriteTracker, start: int, stop: int, serialising: bool) -> None:
        self.plain = TrackedWrite(start, stop, serialising)
        self.running: TrackedWrite | None = None
        self.error: BaseException | None = None
        self.over = False
        entering = tracker.enter(start, stop, serialising=serialising)
        drive(entering, partial(_Entered._enter, self))

    def _enter(self, running: TrackedWrite | None, error: BaseException | None) -> None:
        self.running, self.error = running, error


@given(_STEPS)
def test_a_write_runs_once_no_earlier_one_excludes_it(steps: list[Any]) -> None:
    tracker = WriteTracker()
    writes: list[_Entered] = []
    for step in steps:
        if isinstance(step, int):
            if step < len(writes) and not writes[step].over:
                running = writes[step].running
                if running is not None:
                    writes[step].over = True
                    tracker.leave(running)
        else:
            (start, length), serialising = step
            writes.append(_Entered(tracker, start, start + length, serialising))
        for number, write in enumerate(writes):
            earlier = [other for other in writes[:number] if not other.over]
            waits = any(other.plain.excludes(write.plain) for other in earlier)
            assert write.error is None
            assert (write.running is None) == waits


def test_thousands_of_writes_are_not_compared_with_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such writes come from a burst of clusters smaller than the blocks of the disk below."""
    compared = 0
    excludes = TrackedWrite.excludes

    def count(self: TrackedWrite, other: TrackedWrite) -> bool:
        nonlocal compared
        compared += 1
        return excludes(self, other)

    monkeypatch.setattr(TrackedWrite, "excludes", count)
    tracker, number = WriteTracker(), 4000
    writes = [_Entered(tracker, at * _BLOCK, (at + 1) * _BLOCK, True) for at in range(number)]
    for write in writes:
        assert write.running is not None
        tracker.leave(write.running)
    assert compared < 10 * number
