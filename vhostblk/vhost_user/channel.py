# SPDX-License-Identifier: Apache-2.0
"""The back-end's own requests, over the socket that SET_BACKEND_REQ_FD brings."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

from vhostblk.vhost_user.codec import encode_request
from vhostblk.vhost_user.errors import DescriptorError
from vhostblk.vhost_user.layout import BackendRequest

logger = logging.getLogger(__name__)


class RequestChannel:
    """Implements `vhost_user.backend.BackendChannel`. Never blocks, never asks for a reply."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, also when this raises DescriptorError because it is no stream socket."""
        try:
            channel = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise DescriptorError("the file descriptor is not a socket") from None
        if channel.family != socket.AF_UNIX or channel.type != socket.SOCK_STREAM:
            channel.close()
            raise DescriptorError("the file descriptor is not a UNIX stream socket")
        self._socket: socket.socket | None = channel

    def config_changed(self) -> None:
        """Send CONFIG_CHANGE_MSG.

        Where the front-end doesn't read, the message is dropped; nothing is lost by that, because
        the unread ones before it will make the front-end read the configuration all the same.
        """
        self._send(BackendRequest.CONFIG_CHANGE_MSG)

    def _send(self, request: BackendRequest) -> None:
        if self._socket is None:
            return
        data = encode_request(request)
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            logger.debug("%s dropped: the front-end doesn't read its requests", request.name)
        except OSError as error:
            logger.warning("back-end channel closed: %s", error.strerror)
            self.close()
        else:
            if sent != len(data):  # what follows would be out of step
                logger.warning("back-end channel closed: message cut short")
                self.close()

    def close(self) -> None:
        """Close the socket; later requests are ignored."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
