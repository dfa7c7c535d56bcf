# SPDX-License-Identifier: Apache-2.0
"""Kicks, calls and errors as messages ("In-band notifications"), for front-ends that ask for them.

The device still gets eventfds. This module has their other ends. VRING_KICK signals a kick
descriptor. When the device signals one of the others, VRING_CALL or VRING_ERR is sent. These
messages ask for an acknowledgement (REPLY_ACK). The next message of the same kind and vring is sent
only after the acknowledgement has arrived. So a front-end that is slow or silent gets fewer
messages, loses no notification, and blocks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from vhostblk.vhost_user.layout import VRING_STATE, BackendRequest

if TYPE_CHECKING:
    from vhostblk.vhost_user.channel import RequestChannel


#: The requests that this module sends.
_NOTICES = (BackendRequest.VRING_CALL, BackendRequest.VRING_ERR)


class _Notice(msgspec.Struct, eq=False):
    """The notifications of one vring by one kind of message."""

    request: BackendRequest
    index: int
    fd: int
    #: Whether a signal was not sent yet.
    due: bool = False
    #: Whether a message was sent, and not acknowledged yet.
    unanswered: bool = False


class InbandNotifications:
    """In-band notifications of one session; its event loop is running.

    `moved`: another process began the session. Replies to messages of that process are ignored.
    """

    def __init__(self, *, moved: bool = False) -> None:
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._kicks: dict[int, int] = {}
        self._notices: dict[tuple[BackendRequest, int], _Notice] = {}
        self._sent: deque[_Notice] = deque()
        self._channel: RequestChannel | None = None

    def kick_fd(self, index: int) -> int:
        """Return the descriptor that `kick` signals; the caller owns it."""
        if index not in self._kicks:
            self._kicks[index] = _eventfd()
        return os.dup(self._kicks[index])

    def kick(self, index: int) -> None:
        """Signal that the vring has available buffers, if it is kicked in-band."""
        if index in self._kicks:
            with contextlib.suppress(BlockingIOError):  # signalled already
                os.eventfd_write(self._kicks[index], 1)

    def notice_fd(self, request: BackendRequest, index: int) -> int:
        """Return a descriptor whose signals are sent as messages; the caller owns it."""
        notice = self._notices.get((request, index))
        if notice is None:
            notice = _Notice(request, index, _eventfd())
            self._notices[request, index] = notice
            self._loop.add_reader(notice.fd, self._signalled, notice)
        return os.dup(notice.fd)

    def set_channel(self, channel: RequestChannel) -> None:
        """Set the channel for messages; also send those that were not sent or not acknowledged."""
        self._channel = channel
        self._sent.clear()
        for notice in self._notices.values():
            notice.due |= notice.unanswered
            notice.unanswered = False
        channel.expect_replies(self._answered)
        self._send_due()

    def _signalled(self, notice: _Notice) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(notice.fd)
        notice.due = True
        self._send(notice)

    def _send(self, notice: _Notice) -> None:
        if self._channel is None or notice.unanswered:
            return
        if self._channel.notify(notice.request, VRING_STATE.pack(notice.index, 0), self._send_due):
            notice.due, notice.unanswered = False, True
            self._sent.append(notice)

    def _send_due(self) -> None:
        for notice in self._notices.values():
            if notice.due:
                self._send(notice)

    def _answered(self, request: int) -> bool:
        """Process an acknowledgement; return whether it was expected."""
        if not self._sent or self._sent[0].request != request:
            return self._moved and request in _NOTICES
        notice = self._sent.popleft()
        notice.unanswered = False
        if notice.due:
            self._send(notice)
        return True

    def close(self) -> None:
        """Close the descriptors, but not the channel, which belongs to the session."""
        for notice in self._notices.values():
            self._loop.remove_reader(notice.fd)
        for fd in (*self._kicks.values(), *(notice.fd for notice in self._notices.values())):
            os.close(fd)
        self._kicks.clear()
        self._notices.clear()
        self._channel = None


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
