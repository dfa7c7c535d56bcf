# SPDX-License-Identifier: Apache-2.0
"""One client: its socket, the state of its message, and until when that has to be complete."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk.reservations.wire import GREETING, ServerSide

if TYPE_CHECKING:
    from vhostblk.reservations.wire import Request

#: `struct ucred`: process, user, group.
_CREDENTIALS = struct.Struct("iII")
#: Room for two descriptors: a second one is an error, and the kernel closes any more.
_ANCILLARY = socket.CMSG_SPACE(2 * 4)
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Connection:
    """One client. Only the thread that the event was given to may use it.

    Others change `is_running`, `deadline` and the socket's state under the server's lock.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        #: The client's process; 0 where it is in a name space that we don't see.
        self.pid: int = _CREDENTIALS.unpack(credentials)[0]
        #: A command is being carried out.
        self.is_running = False
        #: When the connection is closed unless the client has sent, or read, what it owes.
        self.deadline: float | None = None
        self._wire = ServerSide()
        self._unsent = GREETING

    @property
    def is_idle(self) -> bool:
        """Whether the client owes nothing."""
        return self._wire.is_idle and not self._unsent

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait until the client reads."""
        return bool(self._unsent)

    def send(self, data: bytes = b"") -> None:
        """Send what is to be sent, as far as that goes; raises OSError."""
        unsent = self._unsent + data if self._unsent else data
        try:
            sent = self.socket.send(unsent, _SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        self._unsent = unsent[sent:]

    def receive(self) -> tuple[bool, Request | None]:
        """Read once; return whether the client is still there, and a request that is complete.

        Raises BlockingIOError where there is nothing, ProtocolError, OSError.
        """
        fds: list[int] = []
        truncated = False
        if self._wire.takes_descriptor:
            data, ancillary, flags, _ = self.socket.recvmsg(self._wire.wanted, _ANCILLARY, _FLAGS)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += memoryview(content[: len(content) & ~3]).cast("i")
            truncated = bool(flags & socket.MSG_CTRUNC)
        else:
            data = self.socket.recv(self._wire.wanted, _FLAGS)
        kept = self._wire.holds_descriptor
        try:
            request = self._wire.receive(data, fds, truncated=truncated)
        finally:
            for fd in fds if kept else fds[1:]:
                os.close(fd)
        return bool(data), request

    def shut_down(self) -> None:
        """Have the thread that gets the next event find the end of the connection."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and a descriptor whose request is incomplete."""
        if (fd := self._wire.take_descriptor()) >= 0:
            os.close(fd)
        self.socket.close()
