# SPDX-License-Identifier: Apache-2.0
"""Parser of the command line, which becomes a list of steps.

The steps are in the order of the command line, because options refer to those before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.cli.errors import UsageError
from vhostblk.cli.getopt import Syntax, split

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Long options, and whether they have an argument.
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

#: Options that QEMU's daemon does not have; they don't make its abbreviations ambiguous.
OWN_OPTIONS = frozenset({"handover", "run-as", "sandbox", "takeover", "x-vhostblk-log"})

#: Options of QEMU's daemon that vhostblk does not have.
UNAVAILABLE = frozenset({"nbd-server"})

#: The beginning of the export properties of the short form.
ADDRESS_PREFIX = "--addr."

_SECRET_TYPES = ("secret", "secret_keyring")

_SYNTAX = Syntax(OPTIONS, SHORT_OPTIONS, OWN_OPTIONS, (ADDRESS_PREFIX,))

#: The values of `--x-vhostblk-log`; see `vhostblk.log`.
FORMS = ("text", "json")


class Step(msgspec.Struct, frozen=True):
    """An option with its argument; `location` is its text on the command line."""

    option: str
    value: str
    location: str


class Arguments(msgspec.Struct):
    """A parsed command line; files and users in it are not looked up yet."""

    #: Options that create something, in order.
    steps: list[Step] = msgspec.field(default_factory=list)
    #: `--trace`, which takes effect first.
    traces: list[Step] = msgspec.field(default_factory=list)
    #: The short form: an image and the properties of its export.
    image: str | None = None
    address: Step | None = None
    daemonize: bool = False
    pidfile: str | None = None
    #: The sandbox, and the user to change to.
    sandbox: Step | None = None
    run_as: Step | None = None
    #: The sockets of `--handover` and `--takeover`.
    handover: Step | None = None
    takeover: Step | None = None
    #: The format of the log.
    log: str = "text"
    #: "help" or "version": print this and exit.
    show: str | None = None


def parse(argv: Sequence[str]) -> Arguments:
    """Parse the words after the program's name; raises UsageError."""
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
    """Return the text of an object for messages, without the secret that it may contain."""
    if "secret" not in value:
        return location
    if value.startswith("{"):
        return '--object {"qom-type": "secret", ...}'
    first, *others = value.replace(",,", "").split(",")
    shown = [first if first in _SECRET_TYPES else _shown_part(first)]
    return f"--object {','.join([*shown, *map(_shown_part, others)])}"


def _shown_part(part: str) -> str:
    from vhostblk.schema.object import SHOWN_MEMBERS  # not needed by --help and vhostblk-pr-helper

    name, equals, _ = part.partition("=")
    if equals and name in SHOWN_MEMBERS:
        return part
    return f"{name if name == 'data' else '...'}{equals and '=...'}"


def _check(arguments: Arguments) -> None:
    """Refuse an incomplete short form."""
    if arguments.address is None:
        if arguments.image is not None:
            raise UsageError(
                f"{arguments.image}: nothing says where to listen: add "
                "--addr.type=unix,addr.path=<socket-path> or --addr.type=fd,addr.str=<fd>"
            )
    elif arguments.image is None and not any(s.option == "blockdev" for s in arguments.steps):
        raise UsageError(f"{arguments.address.location}: no image named and no --blockdev given")
