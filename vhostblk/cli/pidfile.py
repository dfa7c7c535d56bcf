# SPDX-License-Identifier: Apache-2.0
"""The process ID file: written when clients can connect, locked until the process exits.

The lock is the same as QEMU's (a record lock on the whole file, fcntl(2)), so the two exclude each
other. A record lock belongs to a process, so it must be taken after the last fork.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.cli.errors import StartupError
from vhostblk.errors import errors_as, reason

if TYPE_CHECKING:
    from collections.abc import Callable


class PidFile:
    """A locked file with the process ID."""

    def __init__(
        self, path: str, check: Callable[[int, str], object] = lambda fd, path: None
    ) -> None:
        """Create or take over the file; if this raises StartupError, it has changed nothing.

        `check` gets the open file before anything is written to it, and may raise.
        """
        self._fd = _open_locked(path)
        try:
            check(self._fd, path)
        except BaseException:
            os.close(self._fd)
            raise
        # The working directory may change before the file is removed.
        self.path = Path(path).absolute()
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                return  # a terminal, /dev/null: nothing to truncate
            self.remove()
            raise StartupError(f"Failed to write pid file: {reason(error)}", file=path) from error

    def leave(self) -> None:
        """Release the lock, and leave the file to its next owner."""
        os.close(self._fd)
        self._fd = -1

    def remove(self) -> None:
        """Delete the file, if it is still the same file, and release the lock."""
        if self._fd < 0:
            return
        try:
            ours = os.fstat(self._fd)
            there = self.path.lstat()
            if stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, there):
                self.path.unlink()
        except OSError:
            pass  # it was removed, or this user may not: too late to do anything about it
        os.close(self._fd)


def _open_locked(path: str) -> int:
    """Open and lock the file; start again if its last owner deleted it in between."""
    while True:
        with errors_as(StartupError, f"Could not create '{path}'", file=path):
            fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise StartupError(f"Cannot lock pid file: {reason(error)}") from error
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)
