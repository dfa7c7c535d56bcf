# SPDX-License-Identifier: Apache-2.0
"""Serialisation of read-modify-write with other writes to the same blocks.

A write that doesn't fill whole blocks reads them, changes them and writes them back. Another write
to these blocks between the read and the write would be lost. So each write to a node with an
alignment is entered here. A *serialising* write (read-modify-write) and all writes that overlap it
are done one after the other, in order of arrival. As each waits only for earlier ones, there is no
deadlock.

While a serialising write is in flight, all writes in flight are indexed by offset: one request of a
guest may become thousands of writes, and comparing each with all others would stop the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.io.completion import Completion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhostblk.block.graph.backend import BlockBackend

#: The index holds a list of writes for each part of the node; a part has 2 ** `_PART_BITS` bytes.
_PART_BITS = 14
#: Writes that touch more parts than this are in a separate list.
_FEW = 64


class TrackedWrite:
    """One write in flight: bytes [start, stop)."""

    __slots__ = ("serialising", "start", "stop", "waiters")

    def __init__(self, start: int, stop: int, serialising: bool) -> None:
        self.start = start
        self.stop = stop
        self.serialising = serialising
        self.waiters: list[Completion[None]] = []

    def excludes(self, other: TrackedWrite) -> bool:
        """Return whether the two writes may not run concurrently."""
        return (
            (self.serialising or other.serialising)
            and self.start < other.stop
            and other.start < self.stop
        )


class _Places:
    """An index of writes by offset."""

    __slots__ = ("_parts", "_wide")

    def __init__(self, writes: Iterable[TrackedWrite]) -> None:
        self._parts: dict[int, dict[TrackedWrite, None]] = {}
        self._wide: dict[TrackedWrite, None] = {}
        for write in writes:
            self.add(write)

    def add(self, write: TrackedWrite) -> None:
        parts = _parts(write)
        if len(parts) > _FEW:
            self._wide[write] = None
            return
        for part in parts:
            self._parts.setdefault(part, {})[write] = None

    def remove(self, write: TrackedWrite) -> None:
        parts = _parts(write)
        if len(parts) > _FEW:
            del self._wide[write]
            return
        for part in parts:
            there = self._parts[part]
            del there[write]
            if not there:
                del self._parts[part]

    def near(self, write: TrackedWrite) -> Iterator[TrackedWrite]:
        """Yield all writes that may overlap `write`, some several times."""
        yield from self._wide
        parts = _parts(write)
        if len(parts) > len(self._parts):
            for there in self._parts.values():
                yield from there
            return
        for part in parts:
            yield from self._parts.get(part, ())


def _parts(write: TrackedWrite) -> range:
    return range(write.start >> _PART_BITS, (write.stop - 1 >> _PART_BITS) + 1)


class WriteTracker:
    """The writes in flight on one node, in order of arrival.

    `earlier`: users of the node whose writes in flight, if any, were not entered.
    """

    __slots__ = ("_active", "_earlier", "_places", "_serialising")

    def __init__(self, earlier: Iterable[BlockBackend] = ()) -> None:
        self._earlier = list(earlier)
        self._active: dict[TrackedWrite, None] = {}
        self._serialising = 0
        #: The index of all active writes, while one of them is serialising.
        self._places: _Places | None = None

    def try_enter(self, start: int, stop: int) -> TrackedWrite | None:
        """Enter an ordinary write at once; return None if it may have to wait."""
        if self._serialising:
            return None
        write = TrackedWrite(start, stop, False)
        self._active[write] = None
        return write

    async def enter(self, start: int, stop: int, *, serialising: bool) -> TrackedWrite:
        """Wait for earlier conflicting writes; pair with `leave()`."""
        if serialising and self._earlier:
            await self._drain_earlier()
        write = TrackedWrite(start, stop, serialising)
        earlier = self._add(write)
        try:
            for other in earlier:
                if other in self._active:
                    turn: Completion[None] = Completion()
                    other.waiters.append(turn)
                    await turn
        except BaseException:
            self.leave(write)
            raise
        return write

    def _add(self, write: TrackedWrite) -> Iterable[TrackedWrite]:
        """Enter a write; return the earlier writes that it has to wait for."""
        earlier: dict[TrackedWrite, None] = {}
        self._serialising += write.serialising
        if self._serialising:
            if self._places is None:
                self._places = _Places(self._active)
            near = self._places.near(write)
            earlier = {other: None for other in near if other.excludes(write)}
            self._places.add(write)
        self._active[write] = None
        return earlier

    def forget(self, user: object) -> None:
        """Don't wait for earlier writes of this user, as it has none in flight."""
        self._earlier = [other for other in self._earlier if other is not user]

    async def _drain_earlier(self) -> None:
        """Wait for the writes that were not entered. Several callers may wait at once."""
        for user in list(self._earlier):
            async with user.drained():
                pass
        self._earlier = []

    def leave(self, write: TrackedWrite) -> None:
        """End a write, and resume the writes that waited for it."""
        del self._active[write]
        self._serialising -= write.serialising
        if not self._serialising:
            self._places = None
        elif self._places is not None:
            self._places.remove(write)
        for turn in write.waiters:
            turn.set_result(None)
