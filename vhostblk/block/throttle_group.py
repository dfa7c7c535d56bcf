# SPDX-License-Identifier: Apache-2.0
"""Throttle groups: who waits, and whose turn it is.

The members of a group share its limits. Requests that may not go yet wait, reads and writes apart,
each member's in the order in which they came; a timer lets the next one go as soon as the group's
budget has room, and the members take turns. Nobody overtakes those who wait.

The engine takes from the same budget (see `engine.buckets.Budget`). What it may not take comes up
and waits here like the rest, without having been accounted for.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.block.io.completion import Completion
from vhostblk.engine.buckets import READ, WRITE
from vhostblk.engine.budget import make_budget
from vhostblk.engine.timer import make_timer
from vhostblk.schema.throttle import rates_of, unit_of

if TYPE_CHECKING:
    from vhostblk.schema.throttle import ThrottleLimits

#: The shortest wait, in ns. At high rates several requests then go each time that a timer expires,
#: which costs less than a timer for each; the rate is the same, as the buckets leak meanwhile.
SLACK = 200_000


class ThrottleGroup:
    """One group; `limits` are complete."""

    def __init__(self, name: str, limits: ThrottleLimits) -> None:
        self.name = name
        self.budget = make_budget()
        self._members: set[ThrottleMember] = set()
        #: By direction: members with requests that wait, the next one to have its turn first.
        self._turns: tuple[deque[ThrottleMember], ...] = (deque(), deque())
        self._timers = [make_timer(partial(self._serve, direction)) for direction in (READ, WRITE)]
        self.limits = limits
        self._configure()

    @property
    def in_use(self) -> bool:
        """Tell whether it has members."""
        return bool(self._members)

    def set_limits(self, limits: ThrottleLimits) -> None:
        """Go by other limits at once, also those requests that wait already."""
        self.limits = limits
        self._configure()
        for direction in (READ, WRITE):
            self._serve(direction)

    def close(self) -> None:
        """Release everything; no request waits."""
        for timer in self._timers:
            timer.close()

    def _configure(self) -> None:
        limits = self.limits
        self.budget.configure(rates_of(limits), unit_of(limits), monotonic_ns())

    def join(self) -> ThrottleMember:
        """Add a member."""
        member = ThrottleMember(self)
        self.admit(member)
        return member

    # For members.

    def admit(self, member: ThrottleMember) -> None:
        """Add a member, of which no request waits."""
        self._members.add(member)

    def leave(self, member: ThrottleMember) -> None:
        """Remove a member, of which no request waits."""
        self._members.discard(member)

    def enter(self, member: ThrottleMember, direction: int, size: int) -> Completion[None] | None:
        """Begin a request; return what it has to wait for, if anything."""
        turns = self._turns[direction]
        if member.unlimited:
            self.budget.charge(direction, size, bool(turns))
            return None
        if not turns:
            wait = self.budget.take(direction, size, monotonic_ns(), False)
            if not wait:
                return None
            self._timers[direction].set(max(wait, SLACK))
        turn: Completion[None] = Completion()
        waiting = member.waiting[direction]
        if not waiting:
            turns.append(member)
        waiting.append((size, turn))
        return turn

    def let_all_go(self, member: ThrottleMember) -> None:
        """Have no request of a member wait."""
        for direction in (READ, WRITE):
            waiting, turns = member.waiting[direction], self._turns[direction]
            if not waiting:
                continue
            turns.remove(member)
            if not turns:
                self._timers[direction].cancel()
            granted = list(waiting)
            waiting.clear()
            for size, _ in granted:
                self.budget.charge(direction, size, bool(turns))
            for _, turn in granted:
                turn.set_result(None)

    def _serve(self, direction: int) -> None:
        """Let go what may go now, one request of a member at a time."""
        self._timers[direction].cancel()
        turns = self._turns[direction]
        granted: list[Completion[None]] = []
        while turns:
            member = turns[0]
            waiting = member.waiting[direction]
            size, turn = waiting[0]
            others = len(turns) > 1 or len(waiting) > 1
            wait = self.budget.take(direction, size, monotonic_ns(), others)
            if wait:
                self._timers[direction].set(max(wait, SLACK))
                break
            waiting.popleft()
            turns.popleft()
            if waiting:
                turns.append(member)
            granted.append(turn)
        # Only now, because these go on at once and may come back here.
        for turn in granted:
            turn.set_result(None)


class ThrottleMember:
    """One user of a group."""

    def __init__(self, group: ThrottleGroup) -> None:
        self.group = group
        #: How many want none of its requests to wait, as they wait for those themselves.
        self.unlimited = 0
        #: By direction: sizes and turns of requests that wait. Kept by the group.
        self.waiting: tuple[deque[tuple[int, Completion[None]]], ...] = (deque(), deque())

    def enter(self, direction: int, size: int) -> Completion[None] | None:
        """Begin a request of `size` bytes; return what it has to wait for, if anything."""
        return self.group.enter(self, direction, size)

    def lift_limits(self) -> None:
        """Let requests go without waiting until `restore_limits`; they are accounted for."""
        self.unlimited += 1
        if self.unlimited == 1:
            self.group.let_all_go(self)

    def restore_limits(self) -> None:
        """Undo one `lift_limits`."""
        self.unlimited -= 1

    def move(self, group: ThrottleGroup) -> None:
        """Go over to another group; no request waits."""
        if group is self.group:
            return
        self.leave()
        self.group = group
        group.admit(self)

    def leave(self) -> None:
        """Be no member any more; no request waits."""
        self.group.leave(self)


class ThrottleGroups:
    """The groups of a daemon, by name."""

    def __init__(self) -> None:
        self._groups: dict[str, ThrottleGroup] = {}

    def add(self, name: str, limits: ThrottleLimits) -> None:
        """Make a group; the caller has made sure that the name is free."""
        self._groups[name] = ThrottleGroup(name, limits)

    def find(self, name: str) -> ThrottleGroup:
        """Return a group; raises BlockError where there is none."""
        group = self._groups.get(name)
        if group is None:
            raise BlockError(f"Throttle group '{name}' does not exist")
        return group

    def remove(self, name: str) -> None:
        """Forget a group that has no members."""
        group = self._groups.pop(name)
        assert not group.in_use, "a throttle group in use"
        group.close()

    def close(self) -> None:
        """Forget all groups; no request waits."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()
