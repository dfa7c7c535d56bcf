# SPDX-License-Identifier: Apache-2.0
"""What moves to another server: sockets, messages that restore the session, and parts of messages.

A front-end need not be between two messages when its session moves.
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
    """What one server hands to the next one, perhaps of another process."""

    listener: Listener
    connection: socket.socket | None
    said: Sequence[Said]
    #: What has come of a message.
    received: Part = msgspec.field(default_factory=Part)
    #: What has to be sent of a reply.
    unsent: Part = msgspec.field(default_factory=Part)
    #: If the messages can't be replayed, `start` fails; else the front-end is disconnected.
    required: bool = True
    #: Done when all has been said again.
    replayed: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Hang up, and listen no more."""
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
