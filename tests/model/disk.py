# SPDX-License-Identifier: Apache-2.0
"""The model of a disk: which values each sector may have when it is read.

Each event has a time, the tick of one clock. A write starts when it is submitted, and ends when it
is acknowledged. If neither of two writes to a sector ended before the other started, either may
come last. A write W is *known to come later* than a write V if W started after V had ended, and W
was acknowledged as a success before the read started. A sector may read as V if no write to it is
known to come later than V. The `floor` of a sector is the highest start of all acknowledged writes:
V is possible if V ended after the floor.

A write that failed, or a discard, may have changed a sector or not: its value is possible, and it
doesn't raise the floor. But reads are consistent: once a read has returned V, no later read returns
another value whose write ended before that read started.

After a power cut the same rule holds, with "durable" instead of "acknowledged". A write is durable
from the end of the first flush that started after the write had ended; a write that was
acknowledged as written through is durable from its own end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tests.model.content import GARBAGE, SECTOR, ZERO, decode, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Later than everything.
NEVER = 1 << 62
#: Before everything.
_BEFORE = -1


class MismatchError(AssertionError):
    """A sector reads as a value that is not possible."""


class Clock:
    """The clock: it gives each event a time, and each write a number."""

    def __init__(self) -> None:
        self.now = 0
        self._token = 0

    def tick(self) -> int:
        """Return the next time."""
        self.now += 1
        return self.now

    def token(self) -> int:
        """Return the next write's number."""
        self._token += 1
        return self._token


@dataclass(eq=False)
class Change:
    """A write, or something else that changes sectors [first, first + count)."""

    first: int
    count: int
    #: The new value of the sectors: the number of a write, or ZERO.
    value: int
    start: int
    #: Whether success means that all sectors have changed; false for a discard.
    certain: bool = True
    #: Whether it is a discard after which sectors may read as garbage.
    garbage: bool = False
    end: int = NEVER
    failed: bool = False
    #: The time from which on it survives a power cut.
    durable: int = NEVER

    def clip(self, size: int) -> slice:
        """Return the sectors of a disk of this size that it changes."""
        return slice(min(self.first, size), min(self.first + self.count, size))


@dataclass
class View:
    """The possible values of a disk's sectors at one moment."""

    #: Changes that started at this time or later are not visible.
    before: NDArray[np.int64]
    floor: NDArray[np.int64]
    #: The value that a read has returned, and the start of that read.
    seen: NDArray[np.int64]
    seen_at: NDArray[np.int64]
    #: The end of the last change to zeroes, and of that to garbage; by `ZERO` and `GARBAGE`.
    ends: dict[int, NDArray[np.int64]]

    @property
    def size(self) -> int:
        return len(self.floor)

    def part(self, first: int, count: int) -> View:
        """Copy a part."""
        place = slice(first, first + count)
        return View(
            self.before[place].copy(),
            self.floor[place].copy(),
            self.seen[place].copy(),
            self.seen_at[place].copy(),
            {value: ends[place].copy() for value, ends in self.ends.items()},
        )


def _fit(view: View, size: int) -> View:
    """Copy a view to another disk size; added sectors have no possible value yet."""
    copied = view.part(0, size)
    more = max(size - view.size, 0)

    def longer(array: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([array, np.full(more, _BEFORE, np.int64)])

    return View(
        longer(copied.before),
        longer(copied.floor),
        longer(copied.seen),
        longer(copied.seen_at),
        {value: longer(ends) for value, ends in copied.ends.items()},
    )


class Disk:
    """The history of one disk; sizes and places are in sectors."""

    def __init__(self, clock: Clock, size: int, *, garbage: bool = False) -> None:
        """Begin with zeroes. `garbage`: discarded sectors need not read as zeroes."""
        self.clock = clock
        #: All changes, ordered by start.
        self.changes: list[Change] = []
        #: (start, end, size) of each resize; the first one is the creation of the disk.
        self.sizes: list[tuple[int, int, int]] = [(_BEFORE, 0, size)]
        self._garbage = garbage
        self._active: list[Change] = []
        #: The time from which the first sectors were zeroes: 0, or never.
        self._first_zeroes = np.zeros(size, np.int64)
        self._starts = np.full(256, NEVER, np.int64)
        self._ends = np.full(256, NEVER, np.int64)
        #: (start, end, view) of each return of the disk to an earlier state.
        self._returns: list[tuple[int, int, View]] = []
        self._now = View(
            np.full(size, NEVER, np.int64),
            np.full(size, _BEFORE, np.int64),
            np.full(size, ZERO, np.int64),
            np.full(size, _BEFORE, np.int64),
            {ZERO: np.zeros(size, np.int64), GARBAGE: np.full(size, _BEFORE, np.int64)},
        )

    @property
    def size(self) -> int:
        return self._now.size

    # Changes.

    def begin(self, first: int, count: int, value: int, *, discard: bool = False) -> Change:
        """Note that a change starts."""
        garbage = discard and self._garbage
        change = Change(
            first, count, value, self.clock.tick(), certain=not discard, garbage=garbage
        )
        if value > 0:
            self._know(value)
            self._starts[value] = change.start
        self.changes.append(change)
        self._active.append(change)
        self._now.before[change.clip(self.size)] = NEVER
        return change

    def end(self, change: Change, *, failed: bool = False, through: bool = False) -> None:
        """Note that a change has ended; `through`: if it succeeded, it is on stable storage."""
        change.end, change.failed = self.clock.tick(), failed
        self._active.remove(change)
        now, place = self._now, change.clip(self.size)
        if change.value > 0:
            self._ends[change.value] = change.end
        else:
            ends = now.ends[ZERO]
            ends[place] = np.maximum(ends[place], change.end)
        if change.garbage:
            ends = now.ends[GARBAGE]
            ends[place] = np.maximum(ends[place], change.end)
        if change.certain and not failed:
            now.floor[place] = np.maximum(now.floor[place], change.start)
            if through:
                change.durable = change.end

    def initial(self, first: int, count: int, value: int) -> None:
        """Set the first content of sectors: the data of write `value`."""
        self._know(value)
        self._starts[value] = self._ends[value] = 0
        self._now.ends[ZERO][first : first + count] = _BEFORE
        self._first_zeroes[first : first + count] = _BEFORE

    def _know(self, value: int) -> None:
        """Make room for a write's number."""
        while value >= len(self._starts):
            more = np.full_like(self._starts, NEVER)
            self._starts = np.concatenate([self._starts, more])
            self._ends = np.concatenate([self._ends, more])

    def flushed(self, start: int) -> None:
        """Note that a flush has succeeded; it started at time `start`."""
        durable = self.clock.tick()
        for change in self.changes:
            if change.end <= start and not change.failed and change.durable == NEVER:
                change.durable = durable

    def resized(self, start: int, size: int) -> None:
        """Note that the disk has another size. The resize started at `start`, and is durable."""
        now, old = self._now, self.size
        end = self.clock.tick()
        self.sizes.append((start, end, size))
        if size < old:
            self._now = now.part(0, size)
            # During the resize, sectors past the new end may have been discarded already.
            gone = Change(size, old - size, ZERO, start, certain=False, end=end)
            self.changes.append(replace(gone, garbage=self._garbage))
            return
        more = size - old

        def extended(array: NDArray[np.int64], value: int) -> NDArray[np.int64]:
            return np.concatenate([array, np.full(more, value, np.int64)])

        ends = {
            ZERO: extended(now.ends[ZERO], end),
            GARBAGE: extended(now.ends[GARBAGE], _BEFORE),
        }
        self._now = View(
            extended(now.before, NEVER),
            extended(now.floor, start),
            extended(now.seen, ZERO),
            extended(now.seen_at, _BEFORE),
            ends,
        )
        if more:
            grown = Change(old, more, ZERO, start, end=end, durable=end)
            self.changes.append(grown)

    # Views.

    def _pending(self, view: View, first: int) -> None:
        """Add changes in flight to the possible values of a view, which begins at `first`."""
        for change in self._active:
            low = max(change.first - first, 0)
            high = max(change.first + change.count - first, 0)
            if change.value == ZERO:
                view.ends[ZERO][low:high] = NEVER
            if change.garbage:
                view.ends[GARBAGE][low:high] = NEVER

    def view(self) -> View:
        """Return a copy of the possible values of the whole disk now; see `finish`."""
        return self._now.part(0, self.size)

    def finish(self, view: View) -> None:
        """Widen a view to the possible values at any moment between its start and now."""
        now = self._now.part(0, view.size)
        view.before = np.minimum(now.before, self.clock.tick())
        view.ends = now.ends
        self._pending(view, 0)

    def return_to(self, start: int, view: View) -> None:
        """Note that the disk has returned to a finished view. The return began at `start`."""
        end = self.clock.tick()
        if view.size != self.size:
            self.sizes.append((start, end, view.size))
        self._now = self._settled(view)
        self._returns.append((start, end, self._settled(view)))

    def _settled(self, view: View) -> View:
        """Return a copy of a view without changes in flight."""
        copied = view.part(0, view.size)
        for ends in copied.ends.values():
            ends[ends == NEVER] = self.clock.now
        return copied

    def after_cut(self, time: int) -> View:
        """Return the possible values of the disk after a power cut at time `time`."""
        size = self.size_at(time)
        view = self._first(size)
        since = _BEFORE
        for start, end, returned in self._returns:
            if end <= time:
                since, view = start, _fit(returned, size)
                view.seen_at[:] = _BEFORE
        for change in self.changes:
            if not since < change.start <= time:
                continue
            place, end = change.clip(view.size), change.end if change.end <= time else NEVER
            view.before[place] = time + 1
            if change.durable <= time and change.certain:
                view.floor[place] = np.maximum(view.floor[place], change.start)
            for value, holds in ((ZERO, change.value == ZERO), (GARBAGE, change.garbage)):
                if holds:
                    view.ends[value][place] = np.maximum(view.ends[value][place], end)
        return view

    def _first(self, size: int) -> View:
        """Return the view of a disk of size `size` at its creation."""
        count = len(self._first_zeroes)
        before, floor = np.full(count, 1, np.int64), np.full(count, _BEFORE, np.int64)
        ends = {ZERO: self._first_zeroes.copy(), GARBAGE: floor.copy()}
        return _fit(View(before, floor, floor.copy(), floor.copy(), ends), size)

    def size_at(self, time: int) -> int:
        """Return the size at a time when no resize was in progress."""
        return [size for _, end, size in self.sizes if end <= time][-1]

    def cut(self, view: View) -> None:
        """Continue with the view that a power cut may have left: `after_cut` of now."""
        for change in list(self._active):
            self.end(change, failed=True)
        for change in self.changes:
            if change.durable == NEVER:  # no later flush may make it durable
                change.certain = False
        self._now = self._settled(view)

    # Reading.

    def begin_read(self, first: int, count: int) -> tuple[int, View]:
        """Note that a read starts; return the argument `begun` of `end_read`."""
        return self.clock.tick(), self._now.part(first, count)

    def end_read(self, first: int, begun: tuple[int, View], data: bytes) -> None:
        """Check the data that a read has returned; raises MismatchError."""
        start, then = begun
        count = len(data) // SECTOR
        now = self._now.part(first, count)
        self._pending(now, first)
        then.ends = now.ends
        then.before = now.before
        values = self.check(then, first, data)
        live = slice(first, first + count)
        later = self._now.seen_at[live] < start
        self._now.seen[live][later] = values[later]
        self._now.seen_at[live][later] = start

    def check(self, view: View, first: int, data: bytes | NDArray[np.uint8]) -> NDArray[np.int64]:
        """Check data against a view of these sectors; return their decoded values."""
        values = decode(data, first)
        known = np.maximum(values, 0)
        known[known >= len(self._ends)] = 0
        written = (values > 0) & (self._starts[known] < view.before)
        ends = np.where(written, self._ends[known], _BEFORE)
        for special, special_ends in view.ends.items():
            ends = np.where(values == special, special_ends, ends)
        wrong = ends <= view.floor
        wrong |= (ends <= view.seen_at) & (values != view.seen)
        if wrong.any():
            self._complain(view, first, values, wrong)
        return values

    def _complain(
        self, view: View, first: int, values: NDArray[np.int64], wrong: NDArray[np.bool_]
    ) -> None:
        at = int(np.flatnonzero(wrong)[0])
        sector = first + at
        expected = []
        for change in self.changes:
            covers = change.first <= sector < change.first + change.count
            if covers and change.end > view.floor[at] and change.start < view.before[at]:
                expected.append(f"{describe(change.value)} ({change.start}-{change.end})")
        seen = f", seen as {describe(int(view.seen[at]))} at {view.seen_at[at]}"
        raise MismatchError(
            f"sector {sector} (and {int(wrong.sum()) - 1} others of {len(values)} from {first} on) "
            f"reads as {describe(int(values[at]))}; possible: {'; '.join(expected[-4:])}, floor "
            f"{view.floor[at]}{seen if view.seen_at[at] >= 0 else ''}"
        )
