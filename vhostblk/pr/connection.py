# SPDX-License-Identifier: Apache-2.0
"""One client: its socket, the state of its message, and until when that has to be complete."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vhostblk.reservations.layout import CDB_SIZE
from vhostblk.reservations.wire import ServerSide

if TYPE_CHECKING:
    from vhostblk.reservations.wire import Request

#: `struct ucred`: process, user, group.
_CREDENTIALS = struct.Struct("iII")
#: `struct timeval`.
_TIME = struct.Struct("ll")
_FD = struct.Struct("i")
#: Room for two descriptors: a second one is an error, and the kernel closes any more.
_ANCILLARY = socket.CMSG_SPACE(2 * _FD.size)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Connection:
    """One client. Its thread waits in the system calls here; the kernel ends each after `patience`.

    The thread that accepts may shut the socket down.
    """

    def __init__(self, sock: socket.socket, patience: float) -> None:
        """`patience`: seconds that a client has for a message, or for reading a reply."""
        sock.setblocking(True)
        limit = _TIME.pack(*divmod(int(patience * 1_000_000), 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        self.socket = sock
        self.fd = sock.fileno()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        #: The client's process; 0 where it is in a name space that we don't see.
        self.pid: int = _CREDENTIALS.unpack(credentials)[0]
        #: The client doesn't read its reply.
        self.is_stuck = False
        self._patience = patience
        self._wire = ServerSide()

    def send(self, data: bytes) -> None:
        """Send all of it; raises OSError: TimeoutError where the client does not read."""
        try:
            sent = self.socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.is_stuck = True
            try:
                self.socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                raise TimeoutError from None  # a read that has to wait is no error
            self.is_stuck = False

    def receive(self) -> Request | None:
        """Wait for the next request; None: the client has closed the connection.

        Raises ProtocolError, OSError.
        """
        wire = self._wire
        deadline = None if wire.is_idle else time.monotonic() + self._patience
        while True:
            try:
                data, fds, is_truncated = self._read()
            except BlockingIOError:
                # A client that owes nothing may take its time.
                if deadline is None:
                    continue
                raise
            if deadline is None and len(data) == CDB_SIZE and len(fds) == 1 and not is_truncated:
                request = wire.receive_whole(data, fds[0])
            else:
                request = self._take(data, fds, is_truncated)
            if request is not None or not data:
                return request
            if wire.is_idle:
                deadline = None
            elif deadline is None:
                deadline = time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                raise TimeoutError

    def _read(self) -> tuple[bytes, list[int], bool]:
        """Read once: bytes, descriptors, and whether the kernel has dropped some of these."""
        wire = self._wire
        if not wire.takes_descriptor:
            return self.socket.recv(wire.wanted), [], False
        data, ancillary, flags, _ = self.socket.recvmsg(wire.wanted, _ANCILLARY, _CLOEXEC)
        fds: list[int] = []
        for level, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS and level == socket.SOL_SOCKET:
                for (fd,) in _FD.iter_unpack(content):
                    fds.append(fd)
        return data, fds, bool(flags & socket.MSG_CTRUNC)

    def _take(self, data: bytes, fds: list[int], is_truncated: bool) -> Request | None:
        """Give the protocol what has been read; close descriptors that it doesn't keep."""
        kept = self._wire.holds_descriptor
        try:
            return self._wire.receive(data, fds, truncated=is_truncated)
        finally:
            for fd in fds if kept else fds[1:]:
                os.close(fd)

    def end(self) -> None:
        """Have the connection's thread find no further request, after a reply if there is one."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR if self.is_stuck else socket.SHUT_RD)

    def close(self) -> None:
        """Close the socket, and a descriptor whose request is incomplete."""
        if (fd := self._wire.take_descriptor()) >= 0:
            os.close(fd)
        self.socket.close()
