# SPDX-License-Identifier: Apache-2.0
"""What SET_VRING_NUM and SET_VRING_BASE may say depends on the kind of rings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vhost_user.fake import FakeBackend
from tests.vhost_user.harness import Harness
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    F_RING_PACKED,
    F_VERSION_1,
    U64,
    VRING_STATE,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SPLIT = F_VERSION_1 | F_PROTOCOL_FEATURES
PACKED = SPLIT | F_RING_PACKED


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    offered = property(lambda _self: F_VERSION_1 | F_RING_PACKED)
    monkeypatch.setattr(FakeBackend, "device_features", offered)
    harness = Harness()
    harness.negotiate()
    harness.send(Request.SET_FEATURES, U64.pack(PACKED))
    harness.backend.take_calls()
    yield harness
    harness.session.close()


@pytest.mark.parametrize("size", [1, 3, 100, 32768])
def test_packed_rings_have_any_size(harness: Harness, size: int) -> None:
    assert harness.acked(Request.SET_VRING_NUM, VRING_STATE.pack(0, size))


@pytest.mark.parametrize("size", [0, 32769, 0xFFFF_FFFF])
def test_but_not_beyond_the_largest(harness: Harness, size: int) -> None:
    assert not harness.acked(Request.SET_VRING_NUM, VRING_STATE.pack(0, size))


def test_base_has_both_places(harness: Harness) -> None:
    harness.configure(base=0x8003_0005)
    harness.send(Request.SET_VRING_KICK, U64.pack(0), 1)
    (start,) = harness.backend.take_calls()
    assert start[1].next_avail == 0x8003_0005
    harness.backend.stop_at = 0x8007_8007
    reply = harness.query(Request.GET_VRING_BASE, VRING_STATE.pack(0, 0))
    assert VRING_STATE.unpack(reply) == (0, 0x8007_8007)


@pytest.mark.parametrize(
    ("message", "value"), [(Request.SET_VRING_NUM, 100), (Request.SET_VRING_BASE, 0x8000_8000)]
)
def test_a_vring_made_for_another_kind_does_not_start(
    harness: Harness, message: Request, value: int
) -> None:
    harness.configure()
    assert harness.acked(message, VRING_STATE.pack(0, value))
    harness.send(Request.SET_FEATURES, U64.pack(SPLIT))
    assert not harness.acked(Request.SET_VRING_KICK, U64.pack(0), 1)
    assert "start_vring" not in [call[0] for call in harness.backend.take_calls()]
