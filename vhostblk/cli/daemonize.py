# SPDX-License-Identifier: Apache-2.0
"""Going to the background: the parent waits until start-up is complete, as QEMU's does.

`daemonize()` forks before there is an event loop or a thread. The child keeps the terminal for
error messages until it calls `Readiness.announce()`; if it ends without that, the parent fails too.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class Readiness:
    """The child's end of the pipe to the waiting parent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Opened now: a sandbox may deny it later.
        self._null = os.open(os.devnull, os.O_RDWR)

    def announce(self) -> None:
        """Let go of terminal and working directory, and have the parent exit with status 0."""
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
    """Return in a child of its own session; the calling process waits there and exits."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() > 0:
        os.close(writer)
        _wait(reader)
    os.close(reader)
    os.setsid()
    # No session leader, so no way to get a controlling terminal by opening one.
    if os.fork() > 0:
        os._exit(0)
    os.umask(0o027)
    return Readiness(writer)


def _wait(reader: int) -> NoReturn:
    """Exit as the child's start-up does: 0 once it is ready, 1 when it is gone."""
    os._exit(0 if os.read(reader, 1) else 1)
