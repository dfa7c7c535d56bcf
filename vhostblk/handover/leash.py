# SPDX-License-Identifier: Apache-2.0
"""A taker's leash: the taker dies when the giver closes the pipe, even if the taker hangs.

A taker may hang until the giver's time limit has passed and the giver serves again. If the taker
then continued, both would use the same rings and images. Checking the channel before each step does
not help: the taker may hang between the check and the step. So the kernel does it. The leash is a
pipe without data; the giver has the other end. When the giver closes its end, the kernel kills the
taker (fcntl(2), O_ASYNC, F_SETSIG).

The channel itself can't be used: the signal for a message may arrive long after the message was
read. The giver can't send signals: its sandbox denies signals to other processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

from vhostblk.handover.errors import HandoverError


class Holder:
    """The giver's side; `leash` is the taker's end, which is sent to it."""

    def __init__(self) -> None:
        self.leash, self._held = os.pipe()
        self._open = {self.leash, self._held}

    def given(self) -> None:
        """Close the taker's end in this process, after it was sent."""
        self._close(self.leash)

    def let_go(self) -> None:
        """Kill the process that has put the leash on."""
        self._close(self._held)
        self._close(self.leash)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)


class Leash:
    """The taker's side; it owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def put_on(self) -> None:
        """Let the kernel kill this process when the giver closes its end.

        Raises HandoverError if the giver has closed it already.
        """
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGKILL)
        self._set_async(on=True)
        poll = select.poll()
        poll.register(self._fd, 0)  # poll(2) always reports hang-ups
        if poll.poll(0):
            raise HandoverError("the other process has given up")

    def take_off(self) -> None:
        """Survive the giver from now on."""
        self._set_async(on=False)
        os.close(self._fd)

    def _set_async(self, *, on: bool) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        flags = flags | fcntl.FASYNC if on else flags & ~fcntl.FASYNC
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
