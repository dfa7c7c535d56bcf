# SPDX-License-Identifier: Apache-2.0
"""The configuration file of `blkdebug`: rules in the syntax of QEMU's configuration files.

    # A comment
    [inject-error]
    event = "read_aio"
    errno = "28"

The syntax is that of `util/qemu-config.c`, which parses lines with sscanf(3). A line has at most
1023 bytes. Names have up to 63 bytes without white space, and values are in double quotes. Text
after the closing quote is ignored, and a name alone has an empty value. A group's name may be
followed by an identifier: `[inject-error "first"]`.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, TypeVar

from vhostblk.block.errors import BlockError
from vhostblk.errors import reason
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.blkdebug import (
    BlkdebugEvent,
    BlkdebugInjectErrorOptions,
    BlkdebugIOType,
    BlkdebugSetStateOptions,
)
from vhostblk.schema.errors import OptionError
from vhostblk.schema.identifiers import is_identifier
from vhostblk.schema.qemu_opts import BOOLEAN, NUMBER, STRING, QemuOpts

if TYPE_CHECKING:
    from enum import Enum

    from vhostblk.block.drivers.blkdebug_rules import Rule

#: Maximum length of a file.
MAX_BYTES = 1 << 20
_LINE_BYTES = 1023

# Possessive quantifiers, because sscanf(3) doesn't backtrack.
_GROUP_WITH_ID = re.compile(r'\[\s*+(\S{1,63}+)\s*+"([^"]{1,63})', re.ASCII)
_GROUP = re.compile(r"\[([^\]]{1,63})", re.ASCII)
_ASSIGNMENT = re.compile(r'\s*+(\S{1,63}+)(?:\s*+=\s*+"([^"]{1,1023}))?', re.ASCII)

_KINDS = {
    "inject-error": {
        "event": STRING,
        "state": NUMBER,
        "iotype": STRING,
        "errno": NUMBER,
        "sector": NUMBER,
        "once": BOOLEAN,
        "immediately": BOOLEAN,
        "delay-ns": NUMBER,
    },
    "set-state": {"event": STRING, "state": NUMBER, "new_state": NUMBER},
}

E = TypeVar("E", bound="Enum")


_UNREADABLE = "Could not read blkdebug config file"


def read_config(path: str) -> list[Rule]:
    """Return the rules in a file; raises BlockError."""
    try:
        # Opening a FIFO must not block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BlockError(f"{_UNREADABLE}: {reason(error)}", file=path) from error
    if len(text) > MAX_BYTES:
        raise BlockError(f"{_UNREADABLE}: {reason(errno.EFBIG)}", file=path)
    return parse_config(text.decode("utf-8", "surrogateescape"))


def parse_config(text: str) -> list[Rule]:
    """Return the rules in a file's text; raises BlockError with QEMU's message."""
    try:
        return _parse_rules(text)
    except (BlockError, OptionError) as error:
        line = str(error).replace("\n", "\\n")  # the quoted text may contain a newline
        raise BlockError(line) from error


def _parse_rules(text: str) -> list[Rule]:
    rules: list[Rule] = []
    seen: set[tuple[str, str]] = set()
    for group, values in _parse_groups(text):
        name = values.get("id")
        if group not in _KINDS:
            raise BlockError(f"There is no option group '{group}'")
        if name is not None:
            if not is_identifier(name):
                raise BlockError("Parameter 'id' expects an identifier")
            if (group, name) in seen:
                raise BlockError(f"Duplicate ID '{name}' for {group}")
            seen.add((group, name))
        rules.append(_make_rule(group, QemuOpts.checked(_KINDS[group], values)))
    return rules


def _parse_groups(text: str) -> list[tuple[str, dict[str, str]]]:
    groups: list[tuple[str, dict[str, str]]] = []
    for line in _lines(text):
        if line[0] in "\n#":
            continue
        if match := _GROUP_WITH_ID.match(line):
            groups.append((match[1], {"id": match[2]}))
        elif match := _GROUP.match(line):
            groups.append((match[1], {}))
        elif match := _ASSIGNMENT.match(line):
            if not groups:
                raise BlockError("no group defined")
            groups[-1][1][match[1]] = match[2] or ""
        else:
            raise BlockError("parse error")
    return groups


def _lines(text: str) -> list[str]:
    """Split text as fgets(3) does with a buffer of 1024 bytes."""
    lines: list[str] = []
    for line in text.split("\n"):
        whole = line + "\n"
        while len(whole) > _LINE_BYTES:
            lines.append(whole[:_LINE_BYTES])
            whole = whole[_LINE_BYTES:]
        lines.append(whole)
    if text.endswith("\n") or not text:
        lines.pop()  # no line follows the last newline
    return lines


def _make_rule(group: str, opts: QemuOpts) -> Rule:
    event = opts.string("event")
    if event is None:
        raise BlockError("Missing event name for rule")
    trigger = _member(BlkdebugEvent, event)
    state = opts.number("state") or 0
    if group == "set-state":
        return BlkdebugSetStateOptions(
            event=trigger,
            state=_signed(state, 32),
            new_state=_signed(opts.number("new_state") or 0, 32),
        )
    iotype, code, sector = opts.string("iotype"), opts.number("errno"), opts.number("sector")
    return BlkdebugInjectErrorOptions(
        event=trigger,
        state=_signed(state, 32),
        iotype=UNSET if iotype is None else _member(BlkdebugIOType, iotype),
        errno=errno.EIO if code is None else _signed(code, 32),
        sector=-1 if sector is None else _signed(sector, 64),
        once=opts.boolean("once", False),
        immediately=opts.boolean("immediately", False),
        delay_ns=_signed(opts.number("delay-ns") or 0, 64),
    )


def _member(enum: type[E], name: str) -> E:
    try:
        return enum(name)
    except ValueError:
        raise BlockError(f"invalid parameter value: {name}") from None


def _signed(value: int, bits: int) -> int:
    """Convert an integer to a signed one, as C does."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
