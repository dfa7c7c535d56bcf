# SPDX-License-Identifier: Apache-2.0
"""`main()`: from the command line to a helper that serves, and back to an exit status.

Order of start-up: go to the background if asked to, listen, write the process ID file, open
libmpathpersist, give privileges up, tell the waiting parent. Threads start after that, so that all
of them lack the privileges.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk import stdio, systemd
from vhostblk.cli.errors import UsageError
from vhostblk.cli.pidfile import PidFile
from vhostblk.errors import VhostblkError
from vhostblk.pr import multipath as multipath_library
from vhostblk.pr import privileges
from vhostblk.pr.arguments import DEFAULT_SOCKET, PROGRAM, USAGE, parse
from vhostblk.pr.commands import Commands
from vhostblk.pr.compiled import connection_type
from vhostblk.pr.connection import Connection
from vhostblk.pr.listen import listen
from vhostblk.pr.server import Server
from vhostblk.pr.trace import pr_helper_command
from vhostblk.stderr import StderrHandler
from vhostblk.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.cli.daemonize import Readiness
    from vhostblk.net.listener import Listener
    from vhostblk.pr.arguments import Arguments

logger = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds beyond the time-out of a command that the end waits for one.
_GRACE = 5
#: Each thread that waits for Python's lock wakes up this often, in seconds. With Python's own 5 ms,
#: thousands of clients that leave at once keep the processors busy for a minute.
_SWITCH_INTERVAL = 0.05
#: Descriptors beside those of clients.
_OWN_DESCRIPTORS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the helper; `argv` are the words after the program's name. Returns the exit status."""
    stdio.open_missing()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        if arguments.show is not None:
            print(f"{PROGRAM} version {__version__}" if arguments.show == "version" else
                  USAGE.rstrip())  # fmt: skip
            return 0
        if any(word.value in ("help", "?") for word in arguments.traces):
            return _list_trace_points()
        return _run(arguments)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        print(f"{PROGRAM}: Try `{PROGRAM} --help' for more information.", file=sys.stderr)
    except VhostblkError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
    return 1


def _list_trace_points() -> int:
    from vhostblk.pr.trace import NAMES

    print("\n".join(NAMES))
    return 0


def _run(arguments: Arguments) -> int:
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    # -v tells what was not to be had, -q nothing that is no error.
    level = logging.INFO if arguments.level > 1 else logging.WARNING
    logging.basicConfig(handlers=[handler], level=logging.ERROR if arguments.is_quiet else level)
    for word in arguments.traces:
        from vhostblk.trace import options

        options.apply(word.value, lambda text: logger.warning("warning: %s", text))
    readiness = None
    if arguments.daemonize:
        from vhostblk.cli.daemonize import daemonize

        readiness = daemonize()
    stopping = _Stopping()
    listener = listen(arguments.socket, DEFAULT_SOCKET)
    try:
        path = arguments.pidfile_to_write
        pidfile = PidFile(path) if path is not None else None
        try:
            return _serve(arguments, listener, pidfile, readiness, stopping)
        finally:
            if pidfile is not None:
                pidfile.remove()
    finally:
        listener.close()


class _Stopping:
    """What signals do: stop the server, or have it stop as soon as there is one."""

    def __init__(self) -> None:
        self._is_requested = False
        self._server: Server | None = None
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def stops(self, server: Server | None) -> None:
        """Have signals stop a server, or nothing any more."""
        self._server = server
        if server is not None and self._is_requested:
            server.stop()

    def _handle(self, *_: object) -> None:
        self._is_requested = True
        if self._server is not None:
            self._server.stop()


def _serve(
    arguments: Arguments,
    listener: Listener,
    pidfile: PidFile | None,
    readiness: Readiness | None,
    stopping: _Stopping,
) -> int:
    multipath, lacking = _open_multipath(arguments)
    _raise_descriptor_limit(arguments.connections)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    milliseconds = arguments.timeout * 1000
    commands = Commands(
        milliseconds,
        multipath,
        lacking=lacking,
        warn=lambda text: server.warn(text),
    )
    server = Server(
        listener.socket,
        commands.execute,
        # Compiled code traces nothing.
        Connection if pr_helper_command.enabled else connection_type(milliseconds),
        quiet=arguments.is_quiet,
        max_connections=arguments.connections,
    )
    made = [listener.path] if listener.path else []
    if pidfile is not None:
        made.append(str(pidfile.path))
    manager = systemd.Notifier()
    privileges.drop(arguments.identity, made, multipath=multipath is not None)
    stopping.stops(server)
    if readiness is not None:
        readiness.announce()
    manager.tell("READY=1")
    is_complete = server.serve(arguments.timeout + _GRACE)
    manager.tell("STOPPING=1")
    if is_complete:
        stopping.stops(None)
        server.close()
        if multipath is not None:
            multipath.close()
    else:
        logger.error("a command is still being carried out; its reply is lost")
    return 0


def _open_multipath(
    arguments: Arguments,
) -> tuple[multipath_library.Multipath | None, str]:
    """Open libmpathpersist; return None and why commands on maps will fail, where that is so."""
    verbose = 0 if arguments.is_quiet else min(arguments.level, 3)
    user = arguments.identity.user
    if os.geteuid() if user is None else user:
        # Device mapper, the paths and multipathd are for root, whatever the capabilities.
        lacking = "the helper runs as another user than root"
        logger.info("no multipath maps: %s", lacking)
        return None, lacking
    try:
        return multipath_library.Multipath(verbose=verbose, noisy=verbose >= 3), ""
    except multipath_library.MultipathError as error:
        logger.info("no multipath maps: %s", error)
        library = multipath_library.LIBRARY
        return None, (
            f"{library} is not available: install multipath-tools, and restart the helper"
        )


def _raise_descriptor_limit(connections: int) -> None:
    """Make room for all clients: each has a socket, and sends one descriptor at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OWN_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
