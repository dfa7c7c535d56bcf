# SPDX-License-Identifier: Apache-2.0
"""Keeps read-modify-write cycles apart from other writes to the same blocks.

A write that doesn't fill whole blocks reads them, changes them and writes them back. Between the
read and the write no other write may change these blocks, or it would be undone. So each write of a
node with an alignment is entered here; a *serialising* one (read-modify-write) and whatever
overlaps it go one after the other, in the order in which they came. As each waits only for earlier
ones, nobody waits for ever and there is no deadlock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.completion import Completion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.block.backend import BlockBackend


class TrackedWrite:
    """One write in flight: bytes [start, stop)."""

    __slots__ = ("serialising", "start", "stop", "waiters")

    def __init__(self, start: int, stop: int, serialising: bool) -> None:
        self.start = start
        self.stop = stop
        self.serialising = serialising
        self.waiters: list[Completion[None]] = []

    def excludes(self, other: TrackedWrite) -> bool:
        """Tell whether the two may not run at the same time."""
        return (
            (self.serialising or other.serialising)
            and self.start < other.stop
            and other.start < self.stop
        )


class WriteTracker:
    """The writes in flight on one node, in order of arrival.

    `earlier`: users of the node whose writes in flight, if any, were not entered.
    """

    __slots__ = ("_active", "_earlier", "_serialising")

    def __init__(self, earlier: Iterable[BlockBackend] = ()) -> None:
        self._earlier = list(earlier)
        self._active: dict[TrackedWrite, None] = {}
        self._serialising = 0

    def try_enter(self, start: int, stop: int) -> TrackedWrite | None:
        """Enter an ordinary write at once; None where it may have to wait."""
        if self._serialising:
            return None
        write = TrackedWrite(start, stop, False)
        self._active[write] = None
        return write

    async def enter(self, start: int, stop: int, *, serialising: bool) -> TrackedWrite:
        """Wait for earlier writes that exclude this one; pair with `leave()`."""
        if serialising and self._earlier:
            await self._drain_earlier()
        write = TrackedWrite(start, stop, serialising)
        earlier: list[TrackedWrite] = []
        if serialising or self._serialising:
            earlier = [other for other in self._active if other.excludes(write)]
        self._active[write] = None
        self._serialising += serialising
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

    def forget(self, user: object) -> None:
        """Wait for no earlier writes of a user, as there are none."""
        self._earlier = [other for other in self._earlier if other is not user]

    async def _drain_earlier(self) -> None:
        """Wait for the writes that were not entered. Several may do so at once."""
        for user in list(self._earlier):
            async with user.drained():
                pass
        self._earlier = []

    def leave(self, write: TrackedWrite) -> None:
        """End a write, and let those go on that waited for it."""
        del self._active[write]
        self._serialising -= write.serialising
        for turn in write.waiters:
            turn.set_result(None)
