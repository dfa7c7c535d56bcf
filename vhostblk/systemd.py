# SPDX-License-Identifier: Apache-2.0
"""systemd's protocol for services: passed sockets, and notifications of the service's state.

The protocol uses environment variables and datagrams (sd_listen_fds(3), sd_notify(3)), so no
library is needed. Without systemd's variables nothing happens.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing, suppress

#: The first descriptor that is passed.
FIRST_FD = 3


def activated_count() -> int:
    """Return the number of sockets passed to this process; the first one is `FIRST_FD`."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    try:
        return max(0, int(os.environ.get("LISTEN_FDS", "0")))
    except ValueError:
        return 0


def activated_fd(name: str) -> int | None:
    """Return the socket with a name (`FileDescriptorName=` of the socket unit), or None.

    Of several sockets with the name it is the first one.
    """
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    count = activated_count()
    try:
        return FIRST_FD + names[:count].index(name)
    except ValueError:
        return None


class Notifier:
    """A connection to the service manager that stays open when no new socket can be opened."""

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
        except OSError:  # the manager does not listen
            self.close()

    def tell(self, state: str) -> None:
        """Send a state such as `READY=1`."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send(state.encode())

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def notify(state: str) -> None:
    """Send a state such as `READY=1` to the service manager, if there is one."""
    with closing(Notifier()) as notifier:
        notifier.tell(state)
