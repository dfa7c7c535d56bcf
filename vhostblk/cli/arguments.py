# SPDX-License-Identifier: Apache-2.0
"""Splits the command line into steps, as getopt_long(3) does for the QEMU storage daemon.

The order of the steps is that of the command line: an option refers to what earlier ones made.
Long options may be abbreviated and take their argument after '=' or as the next word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhostblk.cli.errors import UsageError

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

#: What `--x-vhostblk-log` takes; see `vhostblk.log`.
FORMS = ("text", "json")


@dataclass(frozen=True, slots=True)
class Step:
    """One option with its argument; `location` is how it was written."""

    option: str
    value: str
    location: str


@dataclass(slots=True)
class Arguments:
    """A command line, understood as far as that goes without looking at the world."""

    #: Options that make something, in order.
    steps: list[Step] = field(default_factory=list)
    #: `--trace`, which comes before everything else.
    traces: list[Step] = field(default_factory=list)
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
    words = list(argv)
    only_images = False
    while words and arguments.show is None:
        word = words.pop(0)
        if only_images or not word.startswith("-") or word == "-":
            _take_image(arguments, word)
        elif word == "--":
            only_images = True
        elif word.startswith(ADDRESS_PREFIX):
            _take_address(arguments, word)
        elif word.startswith("--"):
            _take(arguments, *_long_option(word, words))
        else:
            _take_short_options(arguments, word, words)
    if arguments.show is None:
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


def _long_option(word: str, words: list[str]) -> tuple[str, str, str]:
    """Return an option's full name, its argument and how both were written."""
    given, equals, value = word.removeprefix("--").partition("=")
    matches = [given] if given in OPTIONS else [name for name in OPTIONS if name.startswith(given)]
    if not matches:
        raise UsageError(f"unrecognized option '--{given}'")
    if len(matches) > 1:
        matches = [name for name in matches if name not in OWN_OPTIONS] or matches
    if len(matches) > 1:
        possible = " ".join(f"'--{name}'" for name in matches)
        raise UsageError(f"option '--{given}' is ambiguous; possibilities: {possible}")
    name = matches[0]
    if not OPTIONS[name]:
        if equals:
            raise UsageError(f"option '--{name}' doesn't allow an argument")
        return name, "", word
    if equals:
        return name, value, word
    if not words:
        raise UsageError(f"option '--{name}' requires an argument")
    value = words.pop(0)
    return name, value, f"{word} {value}"


def _take_short_options(arguments: Arguments, word: str, words: list[str]) -> None:
    letters = word[1:]
    while letters and arguments.show is None:
        letter, letters = letters[0], letters[1:]
        name = SHORT_OPTIONS.get(letter)
        if name is None:
            raise UsageError(f"invalid option -- '{letter}'")
        value = ""
        if OPTIONS[name]:
            if not letters and not words:
                raise UsageError(f"option requires an argument -- '{letter}'")
            value, letters = letters or words.pop(0), ""
        _take(arguments, name, value, f"-{letter} {value}".rstrip())


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
    else:
        arguments.steps.append(Step(name, value, location))


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
