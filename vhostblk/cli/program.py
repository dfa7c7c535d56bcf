# SPDX-License-Identifier: Apache-2.0
"""`main()`: runs the daemon, and returns the exit status.

Order of start-up: parse the command line, go to the background if asked to, process the options in
the order given, write the process ID file, notify the waiting parent. If a step fails, everything
is undone, stderr gets one line, and the exit status is 1.
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
    """Run the command and return the exit status; `argv` are the words after its name."""
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
    except BrokenPipeError:  # the reader has closed the pipe; nothing may be left to flush at exit
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
    """Print an error as one line; return the exit status."""
    print(f"{PROGRAM}: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
    return 1
