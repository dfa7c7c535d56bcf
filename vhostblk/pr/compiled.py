# SPDX-License-Identifier: Apache-2.0
"""Connections whose plain requests are served by compiled code, without Python's lock.

`src/connection.c` reads requests, and serves those for SCSI disks and sg devices. It returns
everything else: messages that are incomplete or wrong, other descriptors, failures that are no
SCSI statuses, replies that the client does not read. `Connection` and the protocol's code continue
with what has been read, so they have the only rules and messages.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostblk.errors import os_error
from vhostblk.pr.connection import Connection
from vhostblk.pr.sg import failure
from vhostblk.reservations.sense import from_errno

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vhostblk.reservations.wire import Reply

logger = logging.getLogger(__name__)


class Extension(NamedTuple):
    """The compiled extension as cffi presents it."""

    ffi: Any
    lib: Any


def load() -> Extension | None:
    """Import the extension; None where it was not built, or `VHOSTBLK_ENGINE` is "off"."""
    if os.environ.get("VHOSTBLK_ENGINE") == "off":
        return None
    try:
        extension = importlib.import_module("vhostblk.pr._connection")
    except ImportError as error:
        logger.info("no compiled code: %s", error)
        return None
    return Extension(extension.ffi, extension.lib)


def connection_type(timeout: int) -> Callable[[socket.socket, float], Connection]:
    """Return what makes connections: compiled ones if there are any.

    `timeout`: milliseconds that a command may take.
    """
    extension = load()
    if extension is None:
        return Connection
    return functools.partial(CompiledConnection, extension, timeout)


class CompiledConnection(Connection):
    """One client, served by compiled code between two requests."""

    def __init__(
        self, extension: Extension, timeout: int, sock: socket.socket, patience: float
    ) -> None:
        super().__init__(sock, patience)
        self._ffi, self._lib = extension
        self._state = self._ffi.new("struct vb_pr_connection *")
        self._state.socket = self.fd
        self._state.timeout = timeout
        #: What compiled code has read of a parameter list, and the errno that it got after that.
        self._parameters = b""
        self._error = 0

    def end(self) -> None:
        """Have the connection's thread find no further request, after a reply if there is one."""
        self._state.ending = 1
        super().end()

    def _read(self) -> tuple[bytes, list[int], bool]:
        if self._parameters:
            data, self._parameters = self._parameters, b""
            return data, [], False
        if self._error:
            raise os_error(self._error)
        if not self._wire.is_idle:
            return super()._read()
        self._serve()
        state = self._state
        if not state.cdb_read and state.error:
            raise os_error(state.error)
        self._parameters = bytes(self._ffi.buffer(state.reply.data, state.data_read))
        self._error = state.error
        data = bytes(self._ffi.buffer(state.cdb, state.cdb_read))
        return data, list(state.fds[0 : state.fd_count]), bool(state.fds_dropped)

    def _serve(self) -> None:
        """Serve the client until something has been read that compiled code does not serve."""
        state = self._state
        while (event := self._lib.vb_pr_serve(state)) != self._lib.VB_PR_READ:
            if event == self._lib.VB_PR_FAILED:
                self.send(self._failed().encode(0))
            else:
                reply = self._ffi.buffer(self._ffi.addressof(state.reply), state.reply_size)
                self.send(bytes(reply[state.sent :]))

    def _failed(self) -> Reply:
        """Return the reply for a command that has failed below SCSI."""
        state = self._state
        if state.error:
            return from_errno(state.error)
        sense = bytes(self._ffi.buffer(state.reply.sense))
        reply = failure(state.host_status, state.driver_status, sense)
        assert reply is not None
        return reply
