# SPDX-License-Identifier: Apache-2.0
"""The back-end's own requests, on the socket of SET_BACKEND_REQ_FD."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

from vhostblk.errors import reason
from vhostblk.vhost_user.codec import encode_request
from vhostblk.vhost_user.errors import DescriptorError
from vhostblk.vhost_user.layout import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    U64,
    VERSION,
    BackendRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: An acknowledgement: header, and the value of REPLY_ACK.
_REPLY_BYTES = HEADER.size + U64.size


class RequestChannel:
    """Implements `vhost_user.backend.BackendChannel`. Never blocks, never waits for a reply."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`; raises DescriptorError if it is not a stream socket, and closes it."""
        try:
            channel = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise DescriptorError("the file descriptor is not a socket") from None
        if channel.family != socket.AF_UNIX or channel.type != socket.SOCK_STREAM:
            channel.close()
            raise DescriptorError("the file descriptor is not a UNIX stream socket")
        self._socket: socket.socket | None = channel
        #: The loop that watches the socket if replies are expected.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received = b""

    def config_changed(self) -> None:
        """Send CONFIG_CHANGE_MSG.

        If the front-end doesn't read, the message is dropped. This is harmless: the unread messages
        before it will make the front-end read the configuration.
        """
        self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def notify(self, request: BackendRequest, payload: bytes, again: Callable[[], None]) -> bool:
        """Send a request that must be acknowledged; call `expect_replies` before.

        Return whether it was sent. If the front-end doesn't read, `again` is called once it does.
        """
        if self._send(request, payload, FLAG_NEED_REPLY):
            return True
        if self._socket is not None and self._loop is not None:
            self._loop.add_writer(self._socket.fileno(), self._writable, again)
        return False

    def _writable(self, again: Callable[[], None]) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_writer(self._socket.fileno())
            again()

    def _send(self, request: BackendRequest, payload: bytes = b"", flags: int = 0) -> bool:
        if self._socket is None:
            return False
        data = encode_request(request, payload, flags)
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            logger.debug("%s dropped: the front-end doesn't read its requests", request.name)
            return False
        except OSError as error:
            self._give_up(reason(error))
            return False
        if sent != len(data):  # the stream would be out of sync
            self._give_up("message cut short")
        return True

    # Replies

    def expect_replies(self, answered: Callable[[int], bool]) -> None:
        """Watch the socket, and call `answered` with the request's number of each acknowledgement.

        If it returns False, because the acknowledgement is unexpected, the channel is closed.
        """
        if self._socket is not None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket.fileno(), self._readable, answered)

    def _readable(self, answered: Callable[[int], bool]) -> None:
        assert self._socket is not None
        try:
            received = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(reason(error))
            return
        if not received:  # the front-end has disconnected
            self.close()
            return
        self._received += received
        while len(self._received) >= _REPLY_BYTES and self._socket is not None:
            request, flags, size = HEADER.unpack_from(self._received)
            self._received = self._received[_REPLY_BYTES:]
            # The result in the acknowledgement does not matter.
            if (flags, size) != (VERSION | FLAG_REPLY, U64.size) or not answered(request):
                self._give_up("an unexpected acknowledgement")

    def _give_up(self, why: str) -> None:
        logger.warning("back-end channel closed: %s", why)
        if self._socket is not None:
            with contextlib.suppress(OSError):  # there may be duplicates of the descriptor
                self._socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close the socket; later requests are ignored."""
        if self._socket is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        with contextlib.suppress(OSError):
            self._socket.close()
        self._socket = None
