# SPDX-License-Identifier: Apache-2.0
"""The process ID file: written when clients may connect, locked as long as the process lives.

The lock is the one that QEMU takes (a record lock on the whole file, fcntl(2)), so the two exclude
each other. Record locks belong to the process: take it after the last fork.
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
    """A locked file with this process's number in it."""

    def __init__(
        self, path: str, check: Callable[[int, str], object] = lambda fd, path: None
    ) -> None:
        """Create or take over the file; raises StartupError, and then has changed nothing.

        `check` gets the open file before anything is written to it, and may raise.
        """
        self._fd = _open_locked(path)
        try:
            check(self._fd, path)
        except BaseException:
            os.close(self._fd)
            raise
        # The working directory may change before the end.
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
        """Give the lock back, and leave the file to who takes it next."""
        os.close(self._fd)
        self._fd = -1

    def remove(self) -> None:
        """Delete the file, if it is still the one that was made, and give the lock back."""
        if self._fd < 0:
            return
        try:
            ours = os.fstat(self._fd)
            there = self.path.lstat()
            if stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, there):
                self.path.unlink()
        except OSError:
            pass  # gone, or not ours to delete: nothing to be done about it at the end
        os.close(self._fd)


def _open_locked(path: str) -> int:
    """Open and lock; starts again where the file was deleted in between, by its last owner."""
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
