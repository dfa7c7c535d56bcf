# SPDX-License-Identifier: Apache-2.0
"""Character devices on standard input and output, and on a pseudo-terminal."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import stat
import termios
import tty
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.stream import StreamChardev, close_fds
from vhostblk.errors import errors_as, reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vhostblk.schema.chardev import ChardevPty, ChardevStdio

logger = logging.getLogger(__name__)

#: Seconds between two checks whether a pseudo-terminal was opened.
_POLL_INTERVAL = 0.25


class StdioChardev(StreamChardev):
    """The backend `stdio`; there can be only one device."""

    _taken = False

    def __init__(self, label: str, options: ChardevStdio) -> None:
        super().__init__(label)
        self._signal = options.signal
        self._attributes: list[Any] | None = None
        #: Descriptors that were made non-blocking, with their flags before that.
        self._flags: list[tuple[int, int]] = []
        self._started = False

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "stdio"

    async def start(self) -> None:
        """Take over standard input and output."""
        if StdioChardev._taken:
            raise ChardevError("cannot use stdio by multiple character devices")
        with errors_as(ChardevError, "cannot use stdio"):
            read_fd = self._without_blocking(0, os.O_RDONLY)
            write_fd = self._without_blocking(1, os.O_WRONLY)
        StdioChardev._taken = self._started = True
        if not self._signal and os.isatty(0):
            self._attributes = termios.tcgetattr(0)
            changed = termios.tcgetattr(0)
            changed[3] &= ~termios.ISIG
            termios.tcsetattr(0, termios.TCSANOW, changed)
        self._begin(read_fd, write_fd, partial(close_fds, read_fd, write_fd))

    async def close(self) -> None:
        """Restore the flags of standard input and output."""
        await super().close()
        if not self._started:
            return
        StdioChardev._taken = self._started = False
        for fd, flags in self._flags:
            with suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        if self._attributes is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._attributes)

    def _without_blocking(self, fd: int, access: int) -> int:
        """Return a non-blocking descriptor of the file of `fd`.

        O_NONBLOCK belongs to the open file, which other processes share, such as the shell. So
        the file is opened again if possible.
        """
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with suppress(OSError):
                flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                return os.open(f"/proc/self/fd/{fd}", flags)
        if not stat.S_ISREG(mode):
            former = fcntl.fcntl(fd, fcntl.F_GETFL)
            self._flags.append((fd, former))
            fcntl.fcntl(fd, fcntl.F_SETFL, former | os.O_NONBLOCK)
        return os.dup(fd)


class PtyChardev(StreamChardev):
    """`pty`: a new pseudo-terminal, for one peer after the other."""

    def __init__(self, label: str, options: ChardevPty) -> None:
        super().__init__(label)
        self._link = Path(options.path).absolute() if isinstance(options.path, str) else None
        self._link_made = False
        self._name = ""
        self._master = -1
        self._timer: asyncio.TimerHandle | None = None

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return f"pty:{self._name}" if self._open else f"disconnected:pty:{self._name}"

    @property
    def answer(self) -> Mapping[str, str]:
        """The name of the terminal."""
        return {"pty": self._name}

    async def start(self) -> None:
        """Create the terminal, and wait in the background until it is opened."""
        with errors_as(ChardevError, "Failed to create PTY"):
            self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self._name = os.ttyname(slave)
        tty.setraw(slave)
        os.close(slave)
        if self._link is not None:
            try:
                self._link.symlink_to(self._name)
            except OSError as error:
                os.close(self._master)
                raise ChardevError(
                    f"Failed to create PTY symbolic link '{self._link}': {reason(error)}"
                ) from error
            self._link_made = True
        logger.warning("char device redirected to %s (label %s)", self._name, self.label)
        self._look()

    async def close(self) -> None:
        """Disconnect the peer, and remove the terminal."""
        if self._timer is not None:
            self._timer.cancel()
        await super().close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self._link is not None and self._link_made:
            with suppress(OSError):
                self._link.unlink()

    def disconnect(self) -> None:
        """Disconnect the peer, and wait until the terminal is opened again."""
        if self._stream is not None:
            super().disconnect()
            self._look_later()

    def _look(self) -> None:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            self._look_later()
        else:
            self._begin(self._master, self._master, lambda: None)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_POLL_INTERVAL, self._look)
