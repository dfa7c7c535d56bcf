# SPDX-License-Identifier: Apache-2.0
"""The text format of scripts; the package's documentation describes it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any


class ScriptError(Exception):
    """A line is invalid."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of an `io` line; numbers are in bytes."""

    what: str
    offset: int = 0
    length: int = 0
    byte: int = 0
    unmap: bool = False
    on: bool = False


@dataclass(frozen=True, slots=True)
class Qmp:
    """A line for the monitor."""

    line: str

    @property
    def command(self) -> str:
        """Name of the command, if there is one."""
        try:
            name = json.loads(self.line)["execute"]
        except (ValueError, TypeError, KeyError):
            return ""
        return name if isinstance(name, str) else ""


@dataclass(frozen=True, slots=True)
class Wait:
    """A line that waits for an event whose data has these members."""

    event: str
    members: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shell:
    """A line for the shell."""

    line: str


@dataclass(frozen=True, slots=True)
class Io:
    """A line of concurrent requests."""

    socket: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """`start` with its arguments, `kill`, `exit` or `said`."""

    what: str
    arguments: str = ""


Action = Qmp | Wait | Shell | Io | Control


@dataclass(frozen=True, slots=True)
class Step:
    """One line to run."""

    number: int
    text: str
    action: Action
    #: Name of the difference that was declared for this line.
    but: str = ""
    ordered: bool = False

    @property
    def command(self) -> str:
        """The kind of the step: a QMP command's name, or the line's first word."""
        if isinstance(self.action, Qmp):
            return self.action.command
        return self.text.split()[0]


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed script."""

    name: str
    steps: tuple[Step, ...]
    #: Name of the difference that was declared for events.
    but_events: str = ""


#: Requests that must be alone in a line.
_ALONE = frozenset({"connect", "size", "dump", "cache", "close"})
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NUMBER = re.compile(r"(0x[0-9a-f]+|\d+)([kmgt]?)", re.IGNORECASE)


def parse(text: str, name: str = "script") -> Script:
    """Parse a script; raises ScriptError with the line's number."""
    steps: list[Step] = []
    but = but_events = ""
    ordered = False
    for number, line in _lines(text):
        try:
            word, _, rest = line.partition(" ")
            if word == "but":
                difference, _, events = rest.partition(" ")
                if events not in ("", "events") or not difference:
                    raise ScriptError("want: but NAME, or: but NAME events")
                but, but_events = ("", difference) if events else (difference, but_events)
            elif line == "ordered":
                ordered = True
            else:
                steps.append(Step(number, line, _action(word, rest.strip()), but, ordered))
                but = ""
        except ScriptError as error:
            raise ScriptError(f"{name}:{number}: {error}: {line}") from None
    if but:
        raise ScriptError(f"{name}: nothing comes after: but {but}")
    return Script(name, tuple(steps), but_events)


def number(text: str) -> int:
    """Parse `64k`, `0x200` and the like."""
    found = _NUMBER.fullmatch(text)
    if not found:
        raise ScriptError(f"{text!r} is not a number")
    return int(found[1], 0) * _UNITS[found[2].lower()]


def _lines(text: str) -> list[tuple[int, str]]:
    """Return lines and their numbers, without comments, continued ones joined."""
    found: list[tuple[int, str]] = []
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace():
            if not found:
                raise ScriptError(f"line {place} continues nothing: {line}")
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            found.append((place, line.rstrip()))
    return found


def _action(word: str, rest: str) -> Action:
    match word:
        case ">":
            return Qmp(rest)
        case "$":
            return Shell(rest)
        case "wait":
            event, _, members = rest.partition(" ")
            try:
                return Wait(event, json.loads(members) if members else {})
            except ValueError as error:
                raise ScriptError(str(error)) from None
        case "io":
            return _io(rest)
        case "start" | "kill" | "exit" | "said":
            return Control(word, rest)
    raise ScriptError("not a line of a script")


def _io(rest: str) -> Io:
    socket, _, text = rest.partition(" ")
    requests = tuple(_request(part.split()) for part in text.split(";"))
    if len(requests) > 1 and any(request.what in _ALONE for request in requests):
        raise ScriptError(f"{', '.join(sorted(_ALONE))} are alone in a line")
    return Io(socket, requests)


def _request(words: list[str]) -> Request:
    match words:
        case ["read" | "discard" | "zero" as what, offset, length]:
            return Request(what, number(offset), number(length))
        case ["zero", offset, length, "unmap"]:
            return Request("zero", number(offset), number(length), unmap=True)
        case ["write", offset, length, byte]:
            value = number(byte)
            if value > 255:
                raise ScriptError(f"{byte!r} is more than a byte")
            return Request("write", number(offset), number(length), value)
        case ["flush" | "id" | "connect" | "size" | "dump" | "close" as what]:
            return Request(what)
        case ["cache", "on" | "off" as state]:
            return Request("cache", on=state == "on")
    raise ScriptError(f"not a request: {' '.join(words)!r}")
