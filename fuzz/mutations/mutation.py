# SPDX-License-Identifier: Apache-2.0
"""`Mutation`: one wrong change of our code, and its application to the text of a file."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

#: Separates two places of a file that change together.
_HUNK_BORDER = "..."


class MutationError(Exception):
    """A change that does not apply; the text is the reason."""


class Hunk(NamedTuple):
    """Lines to replace, and the lines that replace them, without their common indentation."""

    old: list[str]
    new: list[str]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change that makes the code lose data.

    `change` is written like a unified diff without headers and line numbers: lines that begin with
    "- " are removed, lines that begin with "+ " are added, others are unchanged. Indentation that
    all lines have in common does not count. The old lines occur exactly once in the file.
    """

    name: str
    #: Path from the top of the tree.
    file: str
    change: str
    #: How data gets lost.
    why: str
    #: The tests that should fail, as arguments of pytest.
    tests: tuple[str, ...]
    #: Why no test can notice the difference; such a mutation is listed and not run.
    equivalent: str = ""

    @property
    def is_compiled(self) -> bool:
        """Whether the engine has to be rebuilt."""
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
    """Parse a change; raises MutationError."""
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
    """Remove the common indentation of a hunk."""
    if not hunk.old or hunk.old == hunk.new:
        raise MutationError("a change has a part that replaces nothing")
    lines = "\n".join([*hunk.old, *hunk.new])
    dedented = textwrap.dedent(lines).split("\n")
    return Hunk(dedented[: len(hunk.old)], dedented[len(hunk.old) :])


def _matches(lines: list[str], place: int, wanted: list[str]) -> bool:
    """Return whether the lines at `place` are those wanted, perhaps all indented further."""
    if not lines[place].endswith(wanted[0]):
        return False
    margin = _margin(lines[place], wanted[0])
    found = lines[place : place + len(wanted)]
    return not margin.strip(" ") and found == [margin + line if line else "" for line in wanted]


def _margin(line: str, wanted: str) -> str:
    """Return the part of a line before the wanted part."""
    return line[: len(line) - len(wanted)]
