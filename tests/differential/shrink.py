# SPDX-License-Identifier: Apache-2.0
"""Shrinking scripts to the smallest one that still shows a difference."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Lines = list[str]


def shrink(lines: Lines, differs: Callable[[Lines], bool], budget: int = 200) -> Lines:
    """Remove lines, then members of commands, while `differs` is true; at most `budget` runs."""
    runs = 0

    def still(candidate: Lines) -> bool:
        nonlocal runs
        runs += 1
        return runs <= budget and differs(candidate)

    return _fewer_members(_fewer_lines(lines, still), still)


def _fewer_lines(lines: Lines, still: Callable[[Lines], bool]) -> Lines:
    """Remove ranges of lines, from the end; in each round of half the length."""
    length = max(len(lines) // 2, 1)
    while True:
        end = len(lines)
        while end > 0:
            begin = max(end - length, 0)
            candidate = lines[:begin] + lines[end:]
            if candidate and still(candidate):
                lines = candidate
            end = begin
        if length == 1:
            return lines
        length = max(length // 2, 1)


def _fewer_members(lines: Lines, still: Callable[[Lines], bool]) -> Lines:
    """Remove members from QMP lines, and requests from `io` lines."""
    for number, line in enumerate(lines):
        changed = True
        while changed:
            changed = False
            for smaller in _smaller(line):
                candidate = [*lines[:number], smaller, *lines[number + 1 :]]
                if still(candidate):
                    lines, line, changed = candidate, smaller, True
                    break
    return lines


def _smaller(line: str) -> Iterator[str]:
    """Yield variants of a line without one member or request."""
    if line.startswith("io ") and ";" in line:
        head, _, requests = line[3:].partition(" ")
        parts = [part.strip() for part in requests.split(";")]
        for place in range(len(parts)):
            yield f"io {head} {'; '.join(parts[:place] + parts[place + 1 :])}"
    elif line.startswith("> {"):
        request = json.loads(line[2:])
        for smaller in _without_one(request.get("arguments", {})):
            yield "> " + json.dumps({**request, "arguments": smaller})


def _without_one(value: Any) -> Iterator[Any]:
    """Yield a value without one of its members or items, at any depth."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield {key: other for key, other in value.items() if key != name}
            for smaller in _without_one(member):
                yield {**value, name: smaller}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield value[:place] + value[place + 1 :]
            for smaller in _without_one(item):
                yield [*value[:place], smaller, *value[place + 1 :]]
