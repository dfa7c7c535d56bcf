# SPDX-License-Identifier: Apache-2.0
"""`main()`: from the command line to a running daemon, and back to an exit status.

Order of start-up: understand the words, go to the background if asked to, carry out the options in
the order given, write the process ID file, tell the waiting parent. Whatever fails ends in one
line on stderr and exit status 1, with everything taken back.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vhostblk import stdio
from vhostblk.cli import arguments as command_line
from vhostblk.errors import VhostblkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.cli.arguments import Arguments

PROGRAM = "vhostblk"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` are the words after the program's name. Returns the exit status."""
    stdio.open_missing()
    try:
        arguments = command_line.parse(sys.argv[1:] if argv is None else argv)
        if arguments.show is not None:
            return _show(arguments.show)
        return _run(arguments)
    except VhostblkError as error:
        return _fail(error)


def _show(what: str) -> int:
    from vhostblk.cli import help as texts

    print(texts.VERSION if what == "version" else texts.USAGE.rstrip())
    return 0


def _list_trace_points() -> int:
    from vhostblk.qmp.commands import load_all
    from vhostblk.trace.options import names

    load_all()  # each command declares trace points
    try:
        print("\n".join(names()), flush=True)
    except BrokenPipeError:  # the reader has seen enough; nothing is left for the exit to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _run(arguments: Arguments) -> int:
    readiness = None
    if any(step.value in ("help", "?") for step in arguments.traces):
        return _list_trace_points()
    if arguments.daemonize:
        from vhostblk.cli.daemonize import daemonize

        readiness = daemonize()
    from vhostblk.cli.run import run

    return run(arguments, readiness)


def _fail(error: VhostblkError) -> int:
    """Tell of an error in one line; return the exit status."""
    print(f"{PROGRAM}: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
    return 1
