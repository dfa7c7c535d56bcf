# SPDX-License-Identifier: Apache-2.0
"""`-T/--trace`: the trace points that are on, and the file for their lines.

    [[enable=]<pattern>][,events=<file>][,file=<file>]

A pattern is a name in which `*` stands for any characters and `?` for any single one; with `-`
before it, the points are turned off. An events file has a pattern on each line; lines that begin
with `#` are comments.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError, reason
from vhostblk.schema.qemu_opts import STRING, parse
from vhostblk.trace import point, points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS = {"enable": STRING, "events": STRING, "file": STRING}

#: The points that modules declare at start-up.
assert points


class TraceError(VhostblkError):
    """Tracing can't be set up as asked for."""


def names() -> list[str]:
    """Return the names of all trace points that have been declared."""
    return list(point.POINTS)


def apply(text: str, warn: Callable[[str], object]) -> None:
    """Apply one option; `warn` is called for patterns that match nothing. Raises TraceError.

    All points must be declared before.
    """
    options = parse(text, "enable", KINDS)
    pattern, events, path = (options.string(name) for name in ("enable", "events", "file"))
    if pattern is not None and not _switch(pattern):
        warn(f"trace event '{pattern.removeprefix('-')}' does not exist")
    if events is not None:
        _take_events(events, warn)
    if path is not None:
        path = path.replace("%d", str(os.getpid()), 1)
        try:
            point.write_to(path)
        except (OSError, ValueError) as error:
            raise TraceError(f"Error opening logfile {path}: {reason(error)}", file=path) from error


def _take_events(path: str, warn: Callable[[str], object]) -> None:
    try:
        lines = Path(path).read_text(errors="replace").split("\n")
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: {reason(error)}", file=path) from error
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#") and not _switch(line):
            warn(f"{path}:{number}: trace event '{line.removeprefix('-')}' does not exist")


def _switch(pattern: str) -> bool:
    """Turn points on or off; return False if the pattern is a name that does not exist."""
    name = pattern.removeprefix("-")
    matching = list(_matching(name))
    for found in matching:
        found.enabled = name == pattern
    return bool(matching) or "*" in name


def _matching(pattern: str) -> Iterable[point.TracePoint]:
    expression = re.compile(
        "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern),
        re.DOTALL,
    )
    return (found for found in point.POINTS.values() if expression.fullmatch(found.name))
