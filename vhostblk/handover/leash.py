# SPDX-License-Identifier: Apache-2.0
"""A taker's leash: it dies when the giver lets go of it, in whatever it hangs.

A taker that hangs in the middle may wake up when the giver has lost patience and goes on as before;
it would then work on the same rings and images. A look at the channel before each step is no use,
for it may hang between the look and the step. So the kernel looks: while the leash is on, what
happens on the channel (fcntl(2), O_ASYNC, F_SETSIG) kills the process. Nothing comes there
meanwhile but the giver's farewell.

The giver itself could not send the signal: its sandbox keeps it from signalling other processes.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from typing import TYPE_CHECKING

from vhostblk.handover.errors import HandoverError

if TYPE_CHECKING:
    import socket


def put_on(channel: socket.socket) -> None:
    """Die from now on when the other end says something or hangs up.

    Raises HandoverError where it has done so already.
    """
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETSIG, signal.SIGKILL)
    _set_async(channel, on=True)
    poll = select.poll()
    poll.register(channel, select.POLLIN | select.POLLRDHUP)
    if poll.poll(0):
        take_off(channel)
        raise HandoverError("the other process has given up")


def take_off(channel: socket.socket) -> None:
    """Live on, whatever happens there."""
    _set_async(channel, on=False)


def _set_async(channel: socket.socket, *, on: bool) -> None:
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    flags = flags | fcntl.FASYNC if on else flags & ~fcntl.FASYNC
    fcntl.fcntl(channel, fcntl.F_SETFL, flags)
