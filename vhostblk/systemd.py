# SPDX-License-Identifier: Apache-2.0
"""systemd's side of a service: sockets that it hands over, and what it wants to be told.

Plain environment variables and a datagram (sd_listen_fds(3), sd_notify(3)), so there is no library
to link to, and nothing happens where another program is the parent.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing, suppress

#: The first descriptor that is handed over.
FIRST_FD = 3


def activated_count() -> int:
    """Return how many sockets were handed over to this process, the first one as `FIRST_FD`."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    try:
        return max(0, int(os.environ.get("LISTEN_FDS", "0")))
    except ValueError:
        return 0


def activated_fd(name: str) -> int | None:
    """Return the socket that the socket unit calls `name` (`FileDescriptorName=`), None: no such.

    The first one where several are called so.
    """
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = activated_count()
    try:
        return FIRST_FD + names[:count].index(name)
    except ValueError:
        return None


class Notifier:
    """A way to the service manager that stays open where no new socket can be had."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return
        if address.startswith("@"):
            address = "\0" + address[1:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(address)
        except OSError:  # a manager that doesn't listen can't be told anything
            self.close()

    def tell(self, state: str) -> None:
        """Tell of a state such as `READY=1`."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(state.encode())

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def notify(state: str) -> None:
    """Tell the service manager, if there is one, of a state such as `READY=1`."""
    with closing(Notifier()) as notifier:
        notifier.tell(state)
