# SPDX-License-Identifier: Apache-2.0
"""In-band notifications of a session; `tests/frontend` has tests with a daemon."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.fake import FakeBackend
from vhostblk.vhost_user import postcopy
from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
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

R = Request

#: Messages that configure vring 0.
CONFIGURATION: Sequence[tuple[Request, bytes]] = (
    (R.SET_FEATURES, U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES)),
    (R.SET_VRING_NUM, VRING_STATE.pack(0, 128)),
    (R.SET_VRING_ADDR, VRING_ADDR.pack(0, 0, 0x1000, 0x3000, 0x2000, 0)),
)


async def tell(session: Session, request: Request, payload: bytes = b"") -> None:
    answer = await session.handle(Message(request, VERSION, payload, FdList()))
    answer.fds.close()
    assert answer.failure is None


def test_what_was_acknowledged_stays() -> None:
    """It can't be taken back, as vrings may be kicked by messages."""

    async def main() -> None:
        session = Session(FakeBackend())
        for _ in range(2):
            await tell(session, R.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES))
        without = PROTOCOL_FEATURES & ~ProtocolFeature.INBAND_NOTIFICATIONS
        with pytest.raises(VhostUserError, match="INBAND_NOTIFICATIONS was acknowledged before"):
            await tell(session, R.SET_PROTOCOL_FEATURES, U64.pack(without))
        assert session.state.protocol_features == PROTOCOL_FEATURES
        session.close()

    asyncio.run(main())


def test_a_vring_that_waits_for_memory_is_kicked_in_band_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postcopy, "_open", lambda: os.eventfd(0))

    async def main() -> None:
        session = Session(FakeBackend())
        await tell(session, R.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES))
        await tell(session, R.POSTCOPY_ADVISE)
        await tell(session, R.POSTCOPY_LISTEN)
        for request, payload in CONFIGURATION:
            await tell(session, request, payload)
        await tell(session, R.VRING_KICK, VRING_STATE.pack(0, 0))
        assert [vring.started for vring in session.state.vrings] == [False, False]
        await tell(session, R.POSTCOPY_END)
        assert [vring.started for vring in session.state.vrings] == [True, False]
        assert [vring.inband for vring in session.state.vrings] == [True, False]
        session.close()

    asyncio.run(main())
