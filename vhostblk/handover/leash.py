# SPDX-License-Identifier: Apache-2.0
"""A taker's leash: it dies when the giver lets go of it, in whatever it hangs.

A taker that hangs in the middle may wake up when the giver has lost patience and goes on as before;
it would then work on the same rings and images. A look at the channel before each step is no use,
for it may hang between the look and the step. So the kernel looks: the leash is a pipe, to which
nobody writes and of which the giver has the other end. While it is on, the closing of that end
(fcntl(2), O_ASYNC, F_SETSIG) kills the process.

The channel would not do: its signal for a message may come when that has long been read. And the
giver itself can't send signals: its sandbox keeps it from signalling other processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

from vhostblk.handover.errors import HandoverError


class Holder:
    """The giver's side: `leash` is the taker's end, to be sent."""

    def __init__(self) -> None:
        self.leash, self._held = os.pipe()
        self._open = {self.leash, self._held}

    def given(self) -> None:
        """The taker has its end."""
        self._close(self.leash)

    def let_go(self) -> None:
        """End a process that has the leash on."""
        self._close(self._held)
        self._close(self.leash)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)


class Leash:
    """The taker's end, a descriptor that is ours."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def put_on(self) -> None:
        """Die from now on when the giver closes its end; raises HandoverError if it has already."""
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGKILL)
        self._set_async(on=True)
        poll = select.poll()
        poll.register(self._fd, 0)  # hang-ups are always told
        if poll.poll(0):
            raise HandoverError("the other process has given up")

    def take_off(self) -> None:
        """Live on, whatever happens to the giver."""
        self._set_async(on=False)
        os.close(self._fd)

    def _set_async(self, *, on: bool) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        flags = flags | fcntl.FASYNC if on else flags & ~fcntl.FASYNC
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
