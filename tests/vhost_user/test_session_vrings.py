# SPDX-License-Identifier: Apache-2.0
"""The session's rules for vrings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    F_PROTOCOL_FEATURES,
    U64,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    Request,
)
from vhostblk.virtqueue.config import VringConfig

if TYPE_CHECKING:
    from tests.vhost_user.harness import Harness

R = Request


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_ring_sizes_accepted(harness: Harness, size: int) -> None:
    assert harness.acked(R.SET_VRING_NUM, VRING_STATE.pack(0, size))


@pytest.mark.parametrize("size", [0, 3, 129, 65535, 65536, 0xFFFFFFFF])
def test_ring_sizes_refused(harness: Harness, size: int) -> None:
    assert not harness.acked(R.SET_VRING_NUM, VRING_STATE.pack(0, size))


@pytest.mark.parametrize(
    "addresses", [(0x1008, 0x3000, 0x2000), (0x1000, 0x3002, 0x2000), (0x1000, 0x3000, 0x2001)]
)
def test_misaligned_rings_are_refused(harness: Harness, addresses: tuple[int, ...]) -> None:
    assert not harness.acked(R.SET_VRING_ADDR, VRING_ADDR.pack(0, 0, *addresses, 0))


def test_base_is_a_16_bit_index(harness: Harness) -> None:
    assert harness.acked(R.SET_VRING_BASE, VRING_STATE.pack(0, 0xFFFF))
    assert not harness.acked(R.SET_VRING_BASE, VRING_STATE.pack(0, 0x10000))


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (R.SET_VRING_NUM, VRING_STATE.pack(2, 128)),
        (R.SET_VRING_BASE, VRING_STATE.pack(0xFFFFFFFF, 0)),
        (R.SET_VRING_ADDR, VRING_ADDR.pack(2, 0, 0, 0, 0, 0)),
        (R.SET_VRING_ENABLE, VRING_STATE.pack(2, 1)),
        (R.SET_VRING_ENABLE, VRING_STATE.pack(0, 2)),
        (R.SET_VRING_CALL, U64.pack(2 | VRING_NOFD)),
        (R.SET_VRING_CALL, U64.pack(0x200 | VRING_NOFD)),
        (R.SET_VRING_CALL, U64.pack(0)),
        (R.SET_VRING_KICK, U64.pack(255 | VRING_NOFD)),
        (R.SET_VRING_ERR, U64.pack(2 | VRING_NOFD)),
        (R.SET_VRING_ERR, U64.pack(0)),
    ],
)
def test_vrings_that_do_not_exist_and_missing_descriptors(
    harness: Harness, request_: Request, payload: bytes
) -> None:
    assert not harness.acked(request_, payload)
    assert harness.backend.take_calls() == []


def test_get_vring_base_of_a_vring_that_does_not_exist_disconnects(harness: Harness) -> None:
    with pytest.raises(VhostUserError, match="GET_VRING_BASE: vring 2 of 2"):
        harness.send(R.GET_VRING_BASE, VRING_STATE.pack(2, 0), need_reply=True)


def test_kick_starts_a_vring_with_what_was_set_last(harness: Harness) -> None:
    harness.configure(1, base=5)
    harness.send(R.SET_VRING_NUM, VRING_STATE.pack(1, 256))
    assert harness.acked(R.SET_VRING_KICK, U64.pack(1), 1)
    assert harness.backend.take_calls() == [
        ("start_vring", VringConfig(1, 256, 0x1000, 0x2000, 0x3000, 5), True)
    ]


@pytest.mark.parametrize("surplus", [0, 1])
def test_kick_without_descriptor_polls(harness: Harness, surplus: int) -> None:
    harness.configure()
    assert harness.acked(R.SET_VRING_KICK, U64.pack(VRING_NOFD), surplus)
    assert harness.backend.take_calls()[-1][2] is False


def test_kick_before_the_vring_is_configured_is_refused(harness: Harness) -> None:
    assert not harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    harness.send(R.SET_VRING_NUM, VRING_STATE.pack(0, 2))
    assert not harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    assert harness.backend.take_calls() == []


def test_legacy_drivers_are_refused_at_the_start_of_a_vring(fresh: Harness) -> None:
    fresh.send(R.SET_FEATURES, U64.pack(F_PROTOCOL_FEATURES))
    fresh.configure()
    with pytest.raises(VhostUserError, match="VERSION_1"):
        fresh.send(R.SET_VRING_KICK, U64.pack(0), 1)


def test_get_vring_base_stops_and_remembers(harness: Harness) -> None:
    harness.start(base=3)
    harness.backend.stop_at = 42
    state = VRING_STATE.pack(0, 0)
    assert VRING_STATE.unpack(harness.query(R.GET_VRING_BASE, state)) == (0, 42)
    assert harness.backend.take_calls() == [("stop_vring", 0)]
    assert VRING_STATE.unpack(harness.query(R.GET_VRING_BASE, state)) == (0, 42)
    assert harness.backend.take_calls() == []
    harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
    (start,) = harness.backend.take_calls()
    assert start[1].next_avail == 42


def test_base_of_a_vring_that_never_started(harness: Harness) -> None:
    harness.configure(base=9)
    reply = harness.query(R.GET_VRING_BASE, VRING_STATE.pack(0, 0))
    assert VRING_STATE.unpack(reply) == (0, 9)


def test_kick_on_a_running_vring_restarts_it_where_it_was(harness: Harness) -> None:
    harness.start(base=3)
    harness.backend.stop_at = 11
    harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
    calls = harness.backend.take_calls()
    assert [call[0] for call in calls] == ["stop_vring", "set_vring_call", "start_vring"]
    assert calls[1] == ("set_vring_call", 0, True)
    assert calls[2][1].next_avail == 11


def test_a_restart_that_fails_leaves_the_vring_stopped_where_it_was(harness: Harness) -> None:
    harness.start(base=3)
    harness.backend.stop_at = 11
    harness.backend.failing["start_vring"] = VhostUserError("not mapped")
    assert not harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    harness.backend.failing.clear()
    assert VRING_STATE.unpack(harness.query(R.GET_VRING_BASE, VRING_STATE.pack(0, 0))) == (0, 11)
    calls = harness.backend.take_calls()
    assert [call[0] for call in calls] == ["stop_vring", "set_vring_call", "start_vring"]
    assert harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    assert harness.backend.take_calls()[0][1].next_avail == 11


@pytest.mark.parametrize("purpose", ["call", "err"])
def test_a_descriptor_that_is_refused_changes_nothing(harness: Harness, purpose: str) -> None:
    """The former descriptor is used when the vring restarts."""
    harness.start()
    request = {"call": R.SET_VRING_CALL, "err": R.SET_VRING_ERR}[purpose]
    harness.backend.failing[f"set_vring_{purpose}"] = VhostUserError("no eventfd")
    assert not harness.acked(request, U64.pack(0), 1)
    harness.backend.failing.clear()
    harness.backend.take_calls()
    assert harness.session.state.vrings[0].err_set is False
    assert harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    calls = harness.backend.take_calls()
    assert [call for call in calls if call[0] == "set_vring_call"] == [("set_vring_call", 0, True)]


def test_base_set_while_running_counts_at_the_restart(harness: Harness) -> None:
    harness.start()
    harness.send(R.SET_VRING_BASE, VRING_STATE.pack(0, 20))
    harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
    assert harness.backend.take_calls()[-1][1].next_avail == 20


def test_addresses_set_while_running_change_nothing_else_than_dirty_logging(
    harness: Harness,
) -> None:
    harness.start()
    for _ in range(2):
        harness.acked(R.SET_VRING_ADDR, VRING_ADDR.pack(0, 1, 0x4000, 0x6000, 0x5000, 0x3000))
    assert harness.backend.take_calls() == [("set_vring_log", 0, 0x3000)]
    assert harness.acked(R.SET_VRING_ADDR, VRING_ADDR.pack(0, 0, 0x4000, 0x6000, 0x5000, 0x3000))
    assert harness.backend.take_calls() == [("set_vring_log", 0, None)]


def test_a_vring_that_fails_to_start_can_be_started_later(harness: Harness) -> None:
    harness.configure()
    harness.backend.failing["start_vring"] = VhostUserError("not mapped")
    assert not harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    harness.backend.failing.clear()
    assert harness.acked(R.SET_VRING_KICK, U64.pack(0), 1)
    assert [call[0] for call in harness.backend.take_calls()] == ["start_vring"] * 2


def test_call_and_err_descriptors_at_any_time(harness: Harness) -> None:
    for request, name in ((R.SET_VRING_CALL, "set_vring_call"), (R.SET_VRING_ERR, "set_vring_err")):
        assert harness.acked(request, U64.pack(1), 1)
        assert harness.acked(request, U64.pack(1 | VRING_NOFD))
        assert harness.acked(request, U64.pack(1 | VRING_NOFD), 1)
        assert harness.backend.take_calls() == [(name, 1, True), (name, 1, False), (name, 1, False)]
