# SPDX-License-Identifier: Apache-2.0
"""The session's rules for the dirty log of a migration."""

from __future__ import annotations

import pytest

from tests.vhost_user.fake import FEATURE, FakeBackend
from tests.vhost_user.harness import Harness
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
    LOG,
    U64,
    VRING_ADDR,
    ProtocolFeature,
    Request,
)
from vhostblk.virtqueue.errors import DirtyLogError

R = Request

SOUND = U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES)
LOGGING = U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES | F_LOG_ALL)


def test_offered_where_the_backend_can_do_it(harness: Harness) -> None:
    assert U64.unpack(harness.query(R.GET_FEATURES))[0] & F_LOG_ALL
    assert U64.unpack(harness.query(R.GET_PROTOCOL_FEATURES))[0] & ProtocolFeature.LOG_SHMFD


def test_not_offered_and_not_understood_where_it_cannot() -> None:
    backend = FakeBackend()
    backend.dirty_logging = None
    harness = Harness(backend)
    assert not U64.unpack(harness.query(R.GET_FEATURES))[0] & F_LOG_ALL
    assert not U64.unpack(harness.query(R.GET_PROTOCOL_FEATURES))[0] & ProtocolFeature.LOG_SHMFD
    for request, payload in ((R.SET_FEATURES, LOGGING), (R.SET_LOG_BASE, LOG.pack(8, 0))):
        with pytest.raises(VhostUserError, match="offered"):
            harness.send(request, payload, request == R.SET_LOG_BASE)
    harness.configure()
    harness.session.close()


def test_log_is_answered_as_front_ends_expect_that_sent_its_descriptor(harness: Harness) -> None:
    answer = harness.send(R.SET_LOG_BASE, LOG.pack(0x2000, 0x1000), 1)
    assert answer.reply.endswith(U64.pack(0))
    assert harness.backend.take_calls() == [("set_log", 0x2000, 0x1000)]


def test_log_is_acked_like_any_message_without_the_protocol_feature(harness: Harness) -> None:
    harness.send(R.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    assert harness.send(R.SET_LOG_BASE, LOG.pack(8, 0), 1).reply == b""
    assert harness.acked(R.SET_LOG_BASE, LOG.pack(8, 0), 1)


@pytest.mark.parametrize("fds", [0, 2])
def test_log_has_exactly_one_descriptor(harness: Harness, fds: int) -> None:
    with pytest.raises(VhostUserError, match=r"SET_LOG_BASE: \d file descriptors"):
        harness.send(R.SET_LOG_BASE, LOG.pack(8, 0), fds, need_reply=True)


def test_log_that_is_too_small_ends_the_session(harness: Harness) -> None:
    harness.backend.failing["set_log"] = DirtyLogError("dirty log too small")
    with pytest.raises(VhostUserError, match="SET_LOG_BASE: dirty log too small"):
        harness.send(R.SET_LOG_BASE, LOG.pack(8, 0), 1, need_reply=True)


def test_logging_is_switched_while_vrings_run(harness: Harness) -> None:
    harness.start()
    assert harness.acked(R.SET_FEATURES, LOGGING)
    assert harness.acked(R.SET_FEATURES, LOGGING)
    assert harness.backend.take_calls() == [("set_logging", True)]
    assert harness.acked(R.SET_FEATURES, SOUND)
    assert harness.backend.take_calls() == [("set_logging", False)]


def test_no_other_feature_is_switched_with_it(harness: Harness) -> None:
    harness.start()
    harness.send(R.SET_VRING_ENABLE, bytes([0, 0, 0, 0, 1, 0, 0, 0]))
    harness.backend.take_calls()
    (features,) = U64.unpack(LOGGING)
    assert not harness.acked(R.SET_FEATURES, U64.pack(features | FEATURE))
    assert harness.backend.take_calls() == []


def test_a_log_that_is_too_small_leaves_disabled_vrings_running(harness: Harness) -> None:
    harness.start()
    harness.backend.failing["set_logging"] = DirtyLogError("dirty log too small")
    (features,) = U64.unpack(LOGGING)
    assert not harness.acked(R.SET_FEATURES, U64.pack(features | FEATURE))
    assert [call[0] for call in harness.backend.take_calls()] == ["set_logging"]


def test_features_reach_the_device_without_the_log(harness: Harness) -> None:
    assert harness.acked(R.SET_FEATURES, LOGGING)
    assert ("set_features", F_VERSION_1) in harness.backend.take_calls()


def test_vring_starts_with_what_its_addresses_say(harness: Harness) -> None:
    for flags, expected in ((1, 0x7000), (0, None)):
        harness.configure()
        harness.send(R.SET_VRING_ADDR, VRING_ADDR.pack(0, flags, 0x1000, 0x3000, 0x2000, 0x7000))
        harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
        name, config, _ = harness.backend.take_calls()[-1]
        assert (name, config.log_addr) == ("start_vring", expected)
        harness.query(R.GET_VRING_BASE, bytes(8))
        harness.backend.take_calls()


def test_reset_ends_logging(harness: Harness) -> None:
    harness.send(R.SET_FEATURES, LOGGING)
    harness.backend.take_calls()
    assert harness.acked(R.RESET_DEVICE)
    assert ("set_logging", False) in harness.backend.take_calls()


def test_event_descriptor(harness: Harness) -> None:
    assert harness.acked(R.SET_LOG_FD, b"", 1)
    assert harness.backend.take_calls() == [("set_event",)]
    assert not harness.acked(R.SET_LOG_FD)
