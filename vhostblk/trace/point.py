# SPDX-License-Identifier: Apache-2.0
"""Trace points, the table of all of them, and the output for their lines."""

from __future__ import annotations

import os
import time

#: All trace points by name, in the order of their declaration.
POINTS: dict[str, TracePoint] = {}

#: Maximum length of a line: guests and clients control a part of it.
_MAX_TEXT = 4096


class TracePoint:
    """A trace point; calling it writes a line."""

    __slots__ = ("enabled", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        #: The format for the operator %, with the arguments of a call.
        self.text = text
        self.enabled = False

    def __call__(self, *arguments: object) -> None:
        """Write a line; never fails."""
        now = time.time_ns()
        try:
            text = self.text % arguments
        except (TypeError, ValueError):
            text = f"{self.text} {arguments!r}"
        text = text[:_MAX_TEXT].replace("\n", "\\n")
        stamp = f"{os.getpid()}@{now // 10**9}.{now // 1000 % 10**6:06}"
        _output.write(f"{stamp}:{self.name} {text}".rstrip() + "\n")


class _Output:
    """The descriptor for lines, each with one write; at first standard error."""

    def __init__(self) -> None:
        self.fd = 2

    def write(self, line: str) -> None:
        try:
            os.write(self.fd, line.encode("utf-8", "backslashreplace"))
        except OSError:  # a full disk must not stop the daemon
            pass


_output = _Output()


def point(name: str, text: str) -> TracePoint:
    """Declare a trace point."""
    assert name not in POINTS, f"trace point {name} declared twice"
    declared = POINTS[name] = TracePoint(name, text)
    return declared


def write_to(path: str) -> None:
    """Write lines to a new file from now on; raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
    former, _output.fd = _output.fd, fd
    if former > 2:
        os.close(former)
