# SPDX-License-Identifier: Apache-2.0
"""Splits the command line into steps.

The order of the steps is that of the command line: an option refers to what earlier ones made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.cli.errors import UsageError
from vhostblk.cli.getopt import Syntax, split

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Long options; True: with an argument.
OPTIONS = {
    "blockdev": True,
    "chardev": True,
    "daemonize": False,
    "export": True,
    "handover": True,
    "help": False,
    "monitor": True,
    "nbd-server": True,
    "object": True,
    "pidfile": True,
    "run-as": True,
    "sandbox": True,
    "takeover": True,
    "trace": True,
    "version": False,
    "x-vhostblk-log": True,
}
SHORT_OPTIONS = {"h": "help", "T": "trace", "V": "version"}

#: Those that the QEMU storage daemon doesn't have; they don't make its abbreviations ambiguous.
OWN_OPTIONS = frozenset({"handover", "run-as", "sandbox", "takeover", "x-vhostblk-log"})

#: Options of the QEMU storage daemon that vhostblk does not have.
UNAVAILABLE = frozenset({"nbd-server"})

#: Begins the export properties of the short form.
ADDRESS_PREFIX = "--addr."

_SECRET_TYPES = ("secret", "secret_keyring")

_SYNTAX = Syntax(OPTIONS, SHORT_OPTIONS, OWN_OPTIONS, (ADDRESS_PREFIX,))

#: What `--x-vhostblk-log` takes; see `vhostblk.log`.
FORMS = ("text", "json")


class Step(msgspec.Struct, frozen=True):
    """One option with its argument; `location` is how it was written."""

    option: str
    value: str
    location: str


class Arguments(msgspec.Struct):
    """A command line, understood as far as that goes without looking at the world."""

    #: Options that make something, in order.
    steps: list[Step] = msgspec.field(default_factory=list)
    #: `--trace`, which comes before everything else.
    traces: list[Step] = msgspec.field(default_factory=list)
    #: The short form: an image and the properties of its export.
    image: str | None = None
    address: Step | None = None
    daemonize: bool = False
    pidfile: str | None = None
    #: What the process gives up, and whom it becomes.
    sandbox: Step | None = None
    run_as: Step | None = None
    #: Sockets: where a new process may take over, and where there may be one to take over from.
    handover: Step | None = None
    takeover: Step | None = None
    #: The form of the log.
    log: str = "text"
    #: "help" or "version": print that and do nothing else.
    show: str | None = None


def parse(argv: Sequence[str]) -> Arguments:
    """Understand the words after the program's name; raises UsageError."""
    arguments = Arguments()
    for word in split(argv, _SYNTAX):
        if word.option is not None:
            _take(arguments, word.option, word.value, word.location)
        elif word.value.startswith(ADDRESS_PREFIX):
            _take_address(arguments, word.value)
        else:
            _take_image(arguments, word.value)
        if arguments.show is not None:
            return arguments
    _check(arguments)
    return arguments


def _take_image(arguments: Arguments, word: str) -> None:
    if arguments.image is not None:
        raise UsageError(f"{word}: Unexpected argument")
    arguments.image = word


def _take_address(arguments: Arguments, word: str) -> None:
    if arguments.address is not None:
        raise UsageError(f"{word}: there is already {arguments.address.location}; use --export")
    arguments.address = Step("addr", word.removeprefix("--"), word)


def _take(arguments: Arguments, name: str, value: str, location: str) -> None:
    if name in UNAVAILABLE:
        raise UsageError(f"{location}: --{name} is not available in vhostblk yet")
    if name in ("help", "version"):
        arguments.show = name
    elif name == "daemonize":
        arguments.daemonize = True
    elif name == "pidfile":
        arguments.pidfile = value
    elif name == "sandbox":
        arguments.sandbox = Step(name, value, location)
    elif name == "run-as":
        arguments.run_as = Step(name, value, location)
    elif name == "handover":
        arguments.handover = Step(name, value, location)
    elif name == "takeover":
        arguments.takeover = Step(name, value, location)
    elif name == "x-vhostblk-log":
        if value not in FORMS:
            raise UsageError(f"{location}: the form of the log is one of {', '.join(FORMS)}")
        arguments.log = value
    elif name == "trace":
        arguments.traces.append(Step(name, value, location))
    elif name == "object":
        arguments.steps.append(Step(name, value, _without_secret(value, location)))
    else:
        arguments.steps.append(Step(name, value, location))


def _without_secret(value: str, location: str) -> str:
    """Return how an object was written, for messages, without the secret that it may have."""
    if "secret" not in value:
        return location
    if value.startswith("{"):
        return '--object {"qom-type": "secret", ...}'
    first, *others = value.replace(",,", "").split(",")
    shown = [first if first in _SECRET_TYPES else _shown_part(first)]
    return f"--object {','.join([*shown, *map(_shown_part, others)])}"


def _shown_part(part: str) -> str:
    from vhostblk.schema.object import SHOWN_MEMBERS  # --help and vhostblk-pr-helper do without

    name, equals, _ = part.partition("=")
    if equals and name in SHOWN_MEMBERS:
        return part
    return f"{name if name == 'data' else '...'}{equals and '=...'}"


def _check(arguments: Arguments) -> None:
    """Refuse halves of the short form."""
    if arguments.address is None:
        if arguments.image is not None:
            raise UsageError(
                f"{arguments.image}: nothing says where to listen: add "
                "--addr.type=unix,addr.path=<socket-path> or --addr.type=fd,addr.str=<fd>"
            )
    elif arguments.image is None and not any(s.option == "blockdev" for s in arguments.steps):
        raise UsageError(f"{arguments.address.location}: no image named and no --blockdev given")
