# SPDX-License-Identifier: Apache-2.0
"""The types of the session's table of messages: rules and results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from vhostblk.vhost_user.codec import FdList
from vhostblk.vhost_user.errors import DescriptorError, PayloadSizeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.vhost_user.codec import Message


class Answer(msgspec.Struct, frozen=True):
    """The result of a message: bytes to send, if any, and a line for the log if it failed.

    `remark` is a line for the log if the message has not failed. `fds` are sent with the reply; the
    sender closes them.
    """

    reply: bytes = b""
    failure: str | None = None
    remark: str | None = None
    fds: FdList = msgspec.field(default_factory=FdList)


class ReplyWithFd(NamedTuple):
    """A handler's reply with a descriptor."""

    payload: bytes
    fd: int


class Remark(NamedTuple):
    """A handler's result that is only a line for the log."""

    line: str


#: A handler's result: the payload of the message's own reply, or None if it has no reply.
Reply = bytes | ReplyWithFd | Remark | None


class Rule(NamedTuple):
    """The rule of a message: its form, and `handler(session, message)`."""

    handler: Callable[[Any, Message], Awaitable[Reply]]
    min_size: int
    max_size: int
    min_fds: int = 0
    max_fds: int = 0
    own_reply: bool = False
    #: The payload of the own reply that means failure, if there is one.
    failure: bytes | None = None

    def check(self, message: Message) -> None:
        """Check the payload's size and the number of descriptors."""
        size = len(message.payload)
        if not self.min_size <= size <= self.max_size:
            expected = self.min_size if size < self.min_size else self.max_size
            raise PayloadSizeError(f"payload of {size} bytes where {expected} are expected")
        if not self.min_fds <= len(message.fds) <= self.max_fds:
            expected = self.min_fds if len(message.fds) < self.min_fds else self.max_fds
            raise DescriptorError(
                f"{len(message.fds)} file descriptors where {expected} are expected"
            )


def fixed(
    handler: Callable[[Any, Message], Awaitable[Reply]],
    size: int = 0,
    *,
    fds: tuple[int, int] = (0, 0),
    reply: bool = False,
) -> Rule:
    """Return the rule of a message with a payload of fixed size."""
    return Rule(handler, size, size, *fds, reply)
