# SPDX-License-Identifier: Apache-2.0
"""Going to the background; as in QEMU, the parent waits until start-up is complete.

`daemonize()` forks before there is an event loop or a thread. The child keeps the terminal for
error messages until it calls `Readiness.announce()`. If it exits before, the parent fails, too.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from vhostblk.systemd import activated_count


class Readiness:
    """The child's end of the pipe to the waiting parent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Opened now: a sandbox may deny it later.
        self._null = os.open(os.devnull, os.O_RDWR)

    def announce(self) -> None:
        """Leave the terminal and the working directory, and let the parent exit with status 0."""
        os.chdir("/")
        sys.stdout.flush()
        sys.stderr.flush()
        for fd in (0, 1, 2):
            os.dup2(self._null, fd)
        if self._null > 2:
            os.close(self._null)
        try:
            os.write(self._fd, b"\0")
        except BrokenPipeError:
            pass  # the parent was killed
        os.close(self._fd)


def daemonize() -> Readiness:
    """Fork, and return in the child, which has its own session; the parent waits and exits."""
    reader, writer = os.pipe()
    activated = activated_count()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() > 0:
        os.close(writer)
        _wait(reader)
    os.close(reader)
    os.setsid()
    # A process that is no session leader can't get a controlling terminal by opening one.
    if os.fork() > 0:
        os._exit(0)
    if activated:
        os.environ["LISTEN_PID"] = str(os.getpid())  # the sockets were passed to the parent
    os.umask(0o027)
    return Readiness(writer)


def _wait(reader: int) -> NoReturn:
    """Exit with status 0 once the child is ready, or with 1 when it has exited."""
    os._exit(0 if os.read(reader, 1) else 1)
