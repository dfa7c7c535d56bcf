# SPDX-License-Identifier: Apache-2.0
"""Declaring a difference from QEMU, and checking outcomes against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = frozenset({7, 10})


def _anything(_ours: Any, _theirs: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Difference:
    """A reason why outcomes differ from those of QEMU, for these major versions of it."""

    reason: str
    versions: frozenset[int] = BOTH
    #: The relation that the outcomes must have.
    holds: Callable[[Any, Any], bool] = _anything


def problem(difference: Difference | None, version: int, ours: Any, theirs: Any) -> str:
    """Return the problem with two outcomes, or an empty string.

    A declared difference that no longer shows is a problem, too, so that declarations stay true.
    """
    if difference is None or version not in difference.versions:
        return "" if ours == theirs else "outcomes differ"
    if ours == theirs:
        return f"no difference any more: {difference.reason}"
    if not difference.holds(ours, theirs):
        return f"another difference than: {difference.reason}"
    return ""


def ours_is_refused(text: str) -> Callable[[Any, Any], bool]:
    """Make a check that vhostblk refuses with `text`, and QEMU doesn't."""

    def check(ours: Any, theirs: Any) -> bool:
        return "return" in theirs and error_of(ours) == {"class": "GenericError", "desc": text}

    return check


def error_of(answer: Any) -> Any:
    """Return the error in an answer, which may be the whole answer or the error itself."""
    return answer.get("error", answer) if isinstance(answer, dict) else None
