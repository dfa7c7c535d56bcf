# SPDX-License-Identifier: Apache-2.0
"""The command line of the helper: that of `qemu-pr-helper`, and what is new."""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING

from vhostblk.cli.errors import UsageError
from vhostblk.cli.getopt import Syntax, Word, split
from vhostblk.pr.privileges import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "vhostblk-pr-helper"
DEFAULT_SOCKET = "/var/run/qemu-pr-helper.sock"
DEFAULT_PIDFILE = "/var/run/qemu-pr-helper.pid"
#: Seconds that a command may take.
DEFAULT_TIMEOUT = 30
_LONGEST_TIMEOUT = 24 * 60 * 60
DEFAULT_CONNECTIONS = 1024
_MOST_CONNECTIONS = 1 << 16

OPTIONS = {
    "daemon": False,
    "group": True,
    "help": False,
    "pidfile": True,
    "quiet": False,
    "socket": True,
    "trace": True,
    "user": True,
    "verbose": False,
    "version": False,
    "x-vhostblk-connections": True,
    "x-vhostblk-timeout": True,
}
LETTERS = {
    "d": "daemon",
    "f": "pidfile",
    "g": "group",
    "h": "help",
    "k": "socket",
    "q": "quiet",
    "T": "trace",
    "u": "user",
    "v": "verbose",
    "V": "version",
}
OWN_OPTIONS = frozenset({"x-vhostblk-connections", "x-vhostblk-timeout"})
_SYNTAX = Syntax(OPTIONS, LETTERS, OWN_OPTIONS)

USAGE = f"""\
Usage: {PROGRAM} [OPTIONS]
Persistent Reservation helper program for QEMU

  -h, --help                display this help and exit
  -V, --version             output version information and exit

  -d, --daemon              run in the background
  -f, --pidfile=PATH        PID file when running as a daemon
                            (default '{DEFAULT_PIDFILE}')
  -k, --socket=PATH         path to the unix socket
                            (default '{DEFAULT_SOCKET}')
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                            specify tracing options
  -u, --user=USER           user to drop privileges to
  -g, --group=GROUP         group to drop privileges to
  -q, --quiet               report no errors of clients
  -v, --verbose             report more; may be repeated

  --x-vhostblk-timeout=SECONDS
                            time that a command may take
                            (default {DEFAULT_TIMEOUT})
  --x-vhostblk-connections=COUNT
                            connections at the same time
                            (default {DEFAULT_CONNECTIONS})

SIGINT, SIGTERM and SIGHUP end the program when commands in flight are done.
See {PROGRAM}(1).
"""


class Arguments:
    """What the command line says."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.pidfile: str | None = None
        self.daemonize = False
        self.is_quiet = False
        #: QEMU's level: 1 to begin with, and one more for each `-v`.
        self.level = 1
        self.traces: list[Word] = []
        self.identity = Identity()
        self.timeout = DEFAULT_TIMEOUT
        self.connections = DEFAULT_CONNECTIONS
        #: "help" or "version": print that and do nothing else.
        self.show: str | None = None

    @property
    def pidfile_to_write(self) -> str | None:
        """The process ID file: written where it is named, or the helper goes to the background."""
        return self.pidfile or (DEFAULT_PIDFILE if self.daemonize else None)


def parse(argv: Sequence[str]) -> Arguments:
    """Understand the words after the program's name; raises UsageError."""
    arguments = Arguments()
    for word in split(argv, _SYNTAX):
        if word.option is None:
            raise UsageError(f"{word.value}: Unexpected argument")
        _take(arguments, word)
        if arguments.show is not None:
            break
    return arguments


def _take(arguments: Arguments, word: Word) -> None:
    name, value = word.option, word.value
    if name in ("help", "version"):
        arguments.show = name
    elif name == "daemon":
        arguments.daemonize = True
    elif name == "quiet":
        arguments.is_quiet = True
    elif name == "verbose":
        arguments.level += 1
    elif name == "trace":
        arguments.traces.append(word)
    elif name == "pidfile":
        arguments.pidfile = value
    elif name == "socket":
        if not value.startswith("/"):
            raise UsageError("socket path must be absolute")
        arguments.socket = value
    elif name == "user":
        arguments.identity = arguments.identity._replace(user=_user(value))
    elif name == "group":
        arguments.identity = arguments.identity._replace(group=_group(value))
    elif name == "x-vhostblk-timeout":
        arguments.timeout = _number(word, _LONGEST_TIMEOUT)
    else:
        arguments.connections = _number(word, _MOST_CONNECTIONS)


def _user(text: str) -> int:
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        return _identifier("user", text)


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        return _identifier("group", text)


def _identifier(what: str, text: str) -> int:
    # All ones means "unchanged" to the kernel.
    if text.isascii() and text.isdecimal() and int(text) < (1 << 32) - 1:
        return int(text)
    raise UsageError(f"invalid {what} '{text}'")


def _number(word: Word, most: int) -> int:
    text = word.value
    if text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most:
        return int(text)
    raise UsageError(f"{word.location}: expected a number from 1 to {most}")
