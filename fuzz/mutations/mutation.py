# SPDX-License-Identifier: Apache-2.0
"""`Mutation`: one wrong change of our code, and how it is applied to a file's text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

#: Stands between two places of a file that change together.
_HUNK_BORDER = "..."


class MutationError(Exception):
    """A change that does not apply; the text is the reason."""


class Hunk(NamedTuple):
    """Lines that are to be replaced by others, without their common indentation."""

    old: list[str]
    new: list[str]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change that makes the code lose data.

    `change` is written like a unified diff without headers and line numbers: lines that begin with
    "- " go, lines that begin with "+ " come, others stay where they are. Indentation that all lines
    have in common does not count. The old lines occur exactly once in the file.
    """

    name: str
    #: Path from the top of the tree.
    file: str
    change: str
    #: How data gets lost.
    why: str
    #: Arguments of pytest: what should fail.
    tests: tuple[str, ...]
    #: Why no run can tell the difference; such a mutation is listed and not run.
    equivalent: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether the engine has to be built anew."""
        return self.file.endswith((".c", ".h"))

    def apply(self, text: str) -> str:
        """Return the changed text of the file; raises MutationError."""
        for hunk in parse(self.change):
            text = self._apply_hunk(text, hunk)
        return text

    def _apply_hunk(self, text: str, hunk: Hunk) -> str:
        lines = text.split("\n")
        places = [place for place in range(len(lines)) if _matches(lines, place, hunk.old)]
        if len(places) != 1:
            raise MutationError(
                f"{self.name}: {len(places)} places in {self.file} have: {hunk.old[0].strip()}"
            )
        place = places[0]
        margin = _margin(lines[place], hunk.old[0])
        new = [margin + line if line else "" for line in hunk.new]
        return "\n".join([*lines[:place], *new, *lines[place + len(hunk.old) :]])


def parse(change: str) -> list[Hunk]:
    """Take a change apart; raises MutationError."""
    hunks = [Hunk([], [])]
    for line in textwrap.dedent(change.strip("\n")).rstrip().split("\n"):
        if line == _HUNK_BORDER:
            hunks.append(Hunk([], []))
            continue
        marker, rest = line[:2].ljust(2), line[2:]
        if marker not in ("- ", "+ ", "  "):
            raise MutationError(f"a line of a change begins with {marker!r}: {line}")
        if marker != "+ ":
            hunks[-1].old.append(rest)
        if marker != "- ":
            hunks[-1].new.append(rest)
    return [_without_indentation(hunk) for hunk in hunks]


def _without_indentation(hunk: Hunk) -> Hunk:
    """Let the leftmost line of a hunk begin at the first column."""
    if not hunk.old or hunk.old == hunk.new:
        raise MutationError("a change has a part that replaces nothing")
    lines = "\n".join([*hunk.old, *hunk.new])
    dedented = textwrap.dedent(lines).split("\n")
    return Hunk(dedented[: len(hunk.old)], dedented[len(hunk.old) :])


def _matches(lines: list[str], place: int, wanted: list[str]) -> bool:
    """Tell whether lines are those that are wanted, all of them perhaps further to the right."""
    if not lines[place].endswith(wanted[0]):
        return False
    margin = _margin(lines[place], wanted[0])
    found = lines[place : place + len(wanted)]
    return not margin.strip(" ") and found == [margin + line if line else "" for line in wanted]


def _margin(line: str, wanted: str) -> str:
    """Return what a line has before the part that is wanted."""
    return line[: len(line) - len(wanted)]
