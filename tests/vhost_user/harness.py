# SPDX-License-Identifier: Apache-2.0
"""A session on a fake backend, for the tests of the session's rules."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from tests.vhost_user.fake import FakeBackend
from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
    FLAG_NEED_REPLY,
    HEADER,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_STATE,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.session import PROTOCOL_FEATURES, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.vhost_user.rules import Answer

R = Request


class Harness:
    """A session on a fake backend, spoken to in messages."""

    def __init__(self, backend: FakeBackend | None = None) -> None:
        self.backend = backend or FakeBackend()
        self.session = Session(self.backend)

    def send(
        self, request: int, payload: bytes = b"", fds: int = 0, *, need_reply: bool = False
    ) -> Answer:
        files = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(fds)]
        return self.send_fds(request, payload, files, need_reply=need_reply)

    def send_fds(
        self, request: int, payload: bytes, fds: Sequence[int], *, need_reply: bool = False
    ) -> Answer:
        flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
        message = Message(request, flags, payload, FdList(fds))
        return asyncio.run(self.session.handle(message))

    def query(self, request: int, payload: bytes = b"") -> bytes:
        answer = self.send(request, payload)
        number, flags, size = HEADER.unpack_from(answer.reply)
        assert (number, flags, size) == (request, 5, len(answer.reply) - HEADER.size)
        return answer.reply[HEADER.size :]

    def acked(self, request: int, payload: bytes = b"", fds: int = 0) -> bool:
        """Send with NEED_REPLY; tell whether it succeeded."""
        answer = self.send(request, payload, fds, need_reply=True)
        number, flags, size, value = (
            *HEADER.unpack_from(answer.reply),
            *U64.unpack(answer.reply[HEADER.size :]),
        )
        assert (number, flags, size) == (request, 5, 8)
        assert (answer.failure is None) == (value == 0)
        return bool(value == 0)

    def negotiate(self) -> None:
        # Messages have an event loop each here; in-band notifications would have to outlive it.
        features = PROTOCOL_FEATURES & ~ProtocolFeature.INBAND_NOTIFICATIONS
        self.send(R.SET_PROTOCOL_FEATURES, U64.pack(features))
        self.send(R.SET_FEATURES, U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES))

    def configure(self, index: int = 0, base: int = 0) -> None:
        self.send(R.SET_VRING_NUM, VRING_STATE.pack(index, 128))
        self.send(R.SET_VRING_BASE, VRING_STATE.pack(index, base))
        self.send(R.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, 0x1000, 0x3000, 0x2000, 0))

    def start(self, index: int = 0, base: int = 0) -> None:
        self.configure(index, base)
        self.send(R.SET_VRING_CALL, U64.pack(index), 1)
        self.send(R.SET_VRING_KICK, U64.pack(index), 1)
        self.backend.take_calls()
