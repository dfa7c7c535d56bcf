# SPDX-License-Identifier: Apache-2.0
"""The rules of `blkdebug`: they map events and a state to errors.

    event ──► rules for it, in this state ──► set-state: another state
                                          └─► inject-error: armed, instead of all that were before

An armed rule fails every request that it matches, until an event arms other rules; with `once`, it
is removed after the first request. If several `set-state` rules match an event, the first applies,
and so does the first of several armed errors that match a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block import SECTOR
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.blkdebug import (
    BlkdebugInjectErrorOptions,
    BlkdebugIOType,
    BlkdebugSetStateOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

Rule = BlkdebugInjectErrorOptions | BlkdebugSetStateOptions


class Rules:
    """The rules and the state of one node."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.state = 1
        self._errors: dict[str, list[BlkdebugInjectErrorOptions]] = {}
        self._states: dict[str, list[BlkdebugSetStateOptions]] = {}
        for rule in rules:
            if isinstance(rule, BlkdebugInjectErrorOptions):
                self._errors.setdefault(rule.event.value, []).append(rule)
            else:
                self._states.setdefault(rule.event.value, []).append(rule)
        self._armed: list[BlkdebugInjectErrorOptions] = []

    def take_event(self, event: str) -> None:
        """Apply the rules for an event (the wire name of a `BlkdebugEvent`)."""
        errors, states = self._errors.get(event, ()), self._states.get(event, ())
        if not errors and not states:
            return
        armed = [rule for rule in errors if self._applies(rule)]
        if armed:
            self._armed = armed
        new_states = [rule.new_state for rule in states if self._applies(rule)]
        if new_states:
            self.state = new_states[0]

    def _applies(self, rule: Rule) -> bool:
        return rule.state in (0, self.state)

    def error_for(
        self, kind: BlkdebugIOType, offset: int, length: int
    ) -> BlkdebugInjectErrorOptions | None:
        """Return the rule that fails a request; None: the request proceeds."""
        for rule in self._armed:
            if _concerns(rule, kind) and _touches(rule, offset, length):
                if rule.once:
                    self._forget(rule)
                return rule
        return None

    def _forget(self, rule: BlkdebugInjectErrorOptions) -> None:
        # By identity: several rules may be equal.
        self._armed = [other for other in self._armed if other is not rule]
        event = rule.event.value
        self._errors[event] = [other for other in self._errors[event] if other is not rule]


def _concerns(rule: BlkdebugInjectErrorOptions, kind: BlkdebugIOType) -> bool:
    if rule.iotype is UNSET:
        return kind is not BlkdebugIOType.BLOCK_STATUS
    return rule.iotype is kind


def _touches(rule: BlkdebugInjectErrorOptions, offset: int, length: int) -> bool:
    return rule.sector == -1 or offset <= rule.sector * SECTOR < offset + length
