# SPDX-License-Identifier: Apache-2.0
"""Throttle groups: shared I/O limits, and queues of delayed requests.

The members of a group share its limits. Delayed requests wait in queues, separate for reads and
writes; each member's requests stay in order. A timer starts the next request as soon as the group's
budget has room. The members take turns. No request overtakes a waiting one.

The engine uses the same budget (see `engine.buckets.Budget`). Requests that the engine can't start
are not accounted for there; they come up and wait here like all others.
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

#: The shortest delay, in ns. At high rates several requests start at each expiry of the timer,
#: which costs less than a timer for each. The rate is the same, as the buckets leak meanwhile.
SLACK = 200_000


class ThrottleGroup:
    """One group; `limits` has all members set."""

    def __init__(self, name: str, limits: ThrottleLimits) -> None:
        self.name = name
        self.budget = make_budget()
        self._members: set[ThrottleMember] = set()
        #: By direction: members with waiting requests, in order of their turns.
        self._turns: tuple[deque[ThrottleMember], ...] = (deque(), deque())
        self._timers = [make_timer(partial(self._serve, direction)) for direction in (READ, WRITE)]
        self.limits = limits
        self._configure()

    @property
    def in_use(self) -> bool:
        """Whether the group has members."""
        return bool(self._members)

    def set_limits(self, limits: ThrottleLimits) -> None:
        """Apply other limits at once, also to requests that already wait."""
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
        """Add a member without waiting requests."""
        self._members.add(member)

    def leave(self, member: ThrottleMember) -> None:
        """Remove a member without waiting requests."""
        self._members.discard(member)

    def enter(self, member: ThrottleMember, direction: int, size: int) -> Completion[None] | None:
        """Begin a request; return a completion to wait for, or None."""
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
        """Start all waiting requests of a member."""
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
        """Start the requests that the budget allows, one request of each member in turn."""
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
        # Only now, because these continue at once and may call this function.
        for turn in granted:
            turn.set_result(None)


class ThrottleMember:
    """One user of a group."""

    def __init__(self, group: ThrottleGroup) -> None:
        self.group = group
        #: Number of `lift_limits` calls in force: the caller waits for the member's requests.
        self.unlimited = 0
        #: By direction: sizes and completions of waiting requests. Set by the group.
        self.waiting: tuple[deque[tuple[int, Completion[None]]], ...] = (deque(), deque())

    def enter(self, direction: int, size: int) -> Completion[None] | None:
        """Begin a request of `size` bytes; return a completion to wait for, or None."""
        return self.group.enter(self, direction, size)

    def lift_limits(self) -> None:
        """Delay no requests until `restore_limits`; they are still accounted for."""
        self.unlimited += 1
        if self.unlimited == 1:
            self.group.let_all_go(self)

    def restore_limits(self) -> None:
        """Undo one `lift_limits`."""
        self.unlimited -= 1

    def move(self, group: ThrottleGroup) -> None:
        """Move to another group; no request waits."""
        if group is self.group:
            return
        self.leave()
        self.group = group
        group.admit(self)

    def leave(self) -> None:
        """Leave the group; no request waits."""
        self.group.leave(self)


class ThrottleGroups:
    """The groups of a daemon, by name."""

    def __init__(self) -> None:
        self._groups: dict[str, ThrottleGroup] = {}

    def add(self, name: str, limits: ThrottleLimits) -> None:
        """Create a group; the caller has checked that the name is free."""
        self._groups[name] = ThrottleGroup(name, limits)

    def find(self, name: str) -> ThrottleGroup:
        """Return a group; raises BlockError if there is none."""
        group = self._groups.get(name)
        if group is None:
            raise BlockError(f"Throttle group '{name}' does not exist")
        return group

    def remove(self, name: str) -> None:
        """Remove a group without members."""
        group = self._groups.pop(name)
        assert not group.in_use, "a throttle group in use"
        group.close()

    def close(self) -> None:
        """Remove all groups; no request waits."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()
