# SPDX-License-Identifier: Apache-2.0
"""The state that moves to another server: sockets, messages, and parts of messages.

A session may move while a message is partly received, or a reply partly sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vhostblk.vhost_user.codec import Part

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Sequence

    from vhostblk.net.listener import Listener
    from vhostblk.vhost_user.restate import Said


class Carried(msgspec.Struct):
    """The state that one server passes to the next one, which may be in another process."""

    listener: Listener
    connection: socket.socket | None
    said: Sequence[Said]
    #: The received part of a message.
    received: Part = msgspec.field(default_factory=Part)
    #: The unsent part of a reply.
    unsent: Part = msgspec.field(default_factory=Part)
    #: Whether `start` fails if the messages can't be replayed; otherwise the front-end is
    #: disconnected.
    required: bool = True
    #: Done when all messages are replayed.
    replayed: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Close the connection and the listening socket."""
        if self.connection is not None:
            self.connection.close()
        self.close_said()
        self.close_parts()
        self.listener.close()

    def close_said(self) -> None:
        """Close the descriptors of the messages that restore the session."""
        for said in self.said:
            said.fds.close()

    def close_parts(self) -> None:
        """Close the descriptors of parts of messages."""
        self.received.fds.close()
        self.unsent.fds.close()
