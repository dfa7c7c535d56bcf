# SPDX-License-Identifier: Apache-2.0
"""Differences by their names, and those that are expected wherever a command is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.differential.differences import BOTH, Difference
from tests.differential.script import ScriptError
from tests.qmp_exports import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Rule:
    """A difference that may show wherever these commands are run; none: at any step.

    Either `holds` says whether it explains two outcomes, or `without` takes it out of each of them.
    """

    reason: str
    commands: frozenset[str] = frozenset()
    holds: Callable[[Any, Any], bool] | None = None
    without: Callable[[Any], Any] | None = None
    versions: frozenset[int] = BOTH


def find(name: str) -> Difference:
    """Return a difference by its name; raises ScriptError where there is none."""
    found = globals().get(name, getattr(differences, name, None))
    if not isinstance(found, Difference):
        raise ScriptError(f"no difference is called {name}")
    return found


def expected(rules: Iterable[Rule], version: int, command: str, ours: Any, theirs: Any) -> str:
    """Return the reasons why two outcomes differ; an empty string: they are not all known."""
    reasons = []
    applying = [
        rule
        for rule in rules
        if version in rule.versions and (not rule.commands or command in rule.commands)
    ]
    for rule in applying:
        if rule.without is not None:
            before = ours == theirs, ours, theirs
            ours, theirs = rule.without(ours), rule.without(theirs)
            if before != (ours == theirs, ours, theirs):
                reasons.append(rule.reason)
    if ours == theirs:
        return "; ".join(reasons)
    for rule in applying:
        if rule.holds is not None and rule.holds(ours, theirs):
            return rule.reason
    return ""


def _without_file_lengths(value: Any) -> Any:
    """Take the lengths of files out of an answer that lists nodes."""
    if isinstance(value, list):
        return [_without_file_lengths(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("drv") == "file":
        value = {**value, "image": {**value["image"], "virtual-size": None}}
    return {name: _without_file_lengths(member) for name, member in value.items()}


#: Better than QEMU, or only otherwise.
RULES = (
    Rule(
        "vhostblk's qcow2 makes its file grow ahead of what is allocated, and cuts it at the end.",
        frozenset({"query-named-block-nodes"}),
        without=_without_file_lengths,
    ),
)
