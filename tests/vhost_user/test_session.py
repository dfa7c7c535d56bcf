# SPDX-License-Identifier: Apache-2.0
"""The session's rules, message by message."""

from __future__ import annotations

import os
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import open_fds
from tests.vhost_user.fake import FEATURE
from tests.vhost_user.harness import Harness
from vhostblk.vhost_user.errors import ProtocolError, VhostUserError
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
    HEADER,
    INFLIGHT,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_STATE,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.session import PROTOCOL_FEATURES
from vhostblk.virtqueue.config import InflightDescription, VringConfig

R = Request


# Features


def test_features_offered_include_the_transport_bit(fresh: Harness) -> None:
    (features,) = U64.unpack(fresh.query(R.GET_FEATURES))
    assert features == F_VERSION_1 | FEATURE | F_PROTOCOL_FEATURES | F_LOG_ALL


def test_features_reach_the_backend_without_the_transport_bit(fresh: Harness) -> None:
    fresh.send(R.SET_FEATURES, U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES))
    assert fresh.backend.take_calls() == [("set_features", F_VERSION_1)]


def test_without_the_transport_bit_all_vrings_are_enabled(fresh: Harness) -> None:
    fresh.send(R.SET_FEATURES, U64.pack(F_VERSION_1))
    assert fresh.backend.take_calls() == [
        ("set_features", F_VERSION_1),
        ("set_vring_enabled", 0, True),
        ("set_vring_enabled", 1, True),
    ]


def test_features_that_were_not_offered_are_refused(harness: Harness) -> None:
    assert not harness.acked(R.SET_FEATURES, U64.pack(F_VERSION_1 | 1 << 34))
    assert harness.backend.take_calls() == []


def test_protocol_features_offered(fresh: Harness) -> None:
    (features,) = U64.unpack(fresh.query(R.GET_PROTOCOL_FEATURES))
    assert features == PROTOCOL_FEATURES


def test_protocol_features_that_were_not_offered_are_refused(fresh: Harness) -> None:
    with pytest.raises(VhostUserError, match=r"SET_PROTOCOL_FEATURES: .* 0x4 were not offered"):
        fresh.send(R.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.RARP))


def test_acks_begin_with_the_message_that_negotiates_them(fresh: Harness) -> None:
    assert fresh.send(R.SET_OWNER, need_reply=True).reply == b""
    assert fresh.acked(R.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES))
    assert fresh.acked(R.SET_OWNER)
    assert fresh.send(R.SET_OWNER).reply == b""


def test_a_message_with_its_own_reply_has_no_ack(harness: Harness) -> None:
    answer = harness.send(R.GET_QUEUE_NUM, need_reply=True)
    assert len(answer.reply) == HEADER.size + 8
    assert U64.unpack(answer.reply[12:]) == (2,)


def test_same_features_again_while_running_are_accepted(harness: Harness) -> None:
    harness.start()
    assert harness.acked(R.SET_FEATURES, U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES))
    assert harness.backend.take_calls() == []


def test_other_features_while_a_vring_runs_are_refused(harness: Harness) -> None:
    harness.start()
    harness.send(R.SET_VRING_ENABLE, VRING_STATE.pack(0, 1))
    assert not harness.acked(R.SET_FEATURES, U64.pack(F_VERSION_1 | FEATURE | F_PROTOCOL_FEATURES))


def test_device_configured_anew_after_reset_owner_without_stopping(harness: Harness) -> None:
    harness.start()
    harness.send(R.SET_VRING_ENABLE, VRING_STATE.pack(0, 1))
    harness.send(R.RESET_OWNER)
    harness.backend.take_calls()
    harness.send(R.SET_FEATURES, U64.pack(F_VERSION_1 | FEATURE | F_PROTOCOL_FEATURES))
    assert harness.backend.take_calls() == [
        ("stop_vring", 0),
        ("set_vring_call", 0, True),
        ("set_features", F_VERSION_1 | FEATURE),
    ]
    harness.configure(base=0)
    harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
    assert harness.backend.take_calls() == [
        ("start_vring", VringConfig(0, 128, 0x1000, 0x2000, 0x3000, 0), True)
    ]


# Ownership


def test_owner_messages(harness: Harness) -> None:
    assert harness.acked(R.SET_OWNER)
    assert harness.acked(R.SET_OWNER)
    assert harness.backend.take_calls() == []
    assert harness.acked(R.RESET_OWNER)
    assert harness.backend.take_calls() == [
        ("set_vring_enabled", 0, False),
        ("set_vring_enabled", 1, False),
    ]


def test_none_ends_the_session(harness: Harness) -> None:
    with pytest.raises(ProtocolError, match="NONE: the front-end ends the session"):
        harness.send(R.NONE, need_reply=True)


# Memory


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    return MEMORY_HEADER.pack(len(regions) if count is None else count, 0) + b"".join(
        MEMORY_REGION.pack(*region) for region in regions
    )


def test_memory_table(harness: Harness) -> None:
    regions = [(0, 0x1000, 0x7000, 0), (0x10000, 0x2000, 0x20000, 0x1000)]
    assert harness.acked(R.SET_MEM_TABLE, table(*regions), 2)
    assert harness.backend.take_calls() == [("set_memory", regions)]


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (b"", 0),
        (bytes(7), 0),
        (table((0, 1, 0, 0)), 0),
        (table((0, 1, 0, 0)), 2),
        (table((0, 1, 0, 0), count=2), 2),
        (table((0, 1, 0, 0), count=0), 0),
        (table(*[(0, 1, 0, 0)] * 9), 8),
        (table(count=0xFFFFFFFF), 0),
    ],
)
def test_malformed_memory_table(harness: Harness, payload: bytes, fds: int) -> None:
    assert not harness.acked(R.SET_MEM_TABLE, payload, fds)
    assert harness.backend.take_calls() == []


def test_memory_that_cannot_be_mapped_is_a_failure(harness: Harness) -> None:
    harness.backend.failing["set_memory"] = OSError(12, "Cannot allocate memory")
    answer = harness.send(R.SET_MEM_TABLE, table((0, 1, 0, 0)), 1, need_reply=True)
    assert answer.failure == "SET_MEM_TABLE: Cannot allocate memory"
    with pytest.raises(VhostUserError, match="SET_MEM_TABLE: Cannot allocate memory"):
        harness.send(R.SET_MEM_TABLE, table((0, 1, 0, 0)), 1)


def test_memory_slots(harness: Harness) -> None:
    assert U64.unpack(harness.query(R.GET_MAX_MEM_SLOTS)) == (509,)


@pytest.mark.parametrize("fds", [0, 1, 2])
def test_add_mem_reg_has_exactly_one_descriptor(harness: Harness, fds: int) -> None:
    region = SINGLE_REGION.pack(0, 0x5000, 0x1000, 0x9000, 0)
    assert harness.acked(R.ADD_MEM_REG, region, fds) == (fds == 1)
    assert harness.backend.take_calls() == ([("add_region", 0x5000, 0x1000)] if fds == 1 else [])


@pytest.mark.parametrize("fds", [0, 1, 2])
def test_rem_mem_reg_has_at_most_one_descriptor(harness: Harness, fds: int) -> None:
    region = SINGLE_REGION.pack(0, 0x5000, 0x1000, 0x9000, 0)
    assert harness.acked(R.REM_MEM_REG, region, fds) == (fds < 2)
    expected = [("remove_region", 0x5000, 0x1000, 0x9000)] if fds < 2 else []
    assert harness.backend.take_calls() == expected


# Channel and configuration


def test_channel_is_given_to_the_backend_and_replaced(harness: Harness) -> None:
    channels = []
    for _ in range(2):
        ours, theirs = socket.socketpair()
        harness.send_fds(R.SET_BACKEND_REQ_FD, b"", [theirs.detach()])
        assert harness.backend.channel is not None
        channels.append((ours, harness.backend.channel))
    assert channels[0][0].recv(1) == b""
    channels[1][1].config_changed()
    assert HEADER.unpack(channels[1][0].recv(100)) == (2, VERSION, 0)
    harness.session.close()
    assert channels[1][0].recv(1) == b""
    channels[1][1].config_changed()
    for ours, _ in channels:
        ours.close()


def test_channel_must_be_a_stream_socket(harness: Harness) -> None:
    assert not harness.acked(R.SET_BACKEND_REQ_FD, b"", 1)
    assert not harness.acked(R.SET_BACKEND_REQ_FD, b"", 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(VhostUserError, match="UNIX stream socket"):
        harness.send_fds(R.SET_BACKEND_REQ_FD, b"", [theirs.detach()])
    ours.close()


def test_channel_never_blocks(harness: Harness) -> None:
    ours, theirs = socket.socketpair()
    harness.send_fds(R.SET_BACKEND_REQ_FD, b"", [theirs.detach()])
    assert harness.backend.channel is not None
    for _ in range(5000):
        harness.backend.channel.config_changed()
    ours.close()
    harness.backend.channel.config_changed()


def test_get_config(harness: Harness) -> None:
    reply = harness.query(R.GET_CONFIG, CONFIG_HEADER.pack(4, 8, 0) + bytes(8))
    assert reply == CONFIG_HEADER.pack(4, 8, 0) + bytes(range(4, 12))


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 257), (256, 1), (0xFFFFFFFF, 8)])
def test_get_config_out_of_bounds_is_answered_with_nothing(
    harness: Harness, offset: int, size: int
) -> None:
    answer = harness.send(R.GET_CONFIG, CONFIG_HEADER.pack(offset, size, 0))
    assert HEADER.unpack(answer.reply) == (R.GET_CONFIG, 5, 0)
    assert answer.failure is not None
    assert harness.backend.take_calls() == []


def test_set_config(harness: Harness) -> None:
    assert harness.acked(R.SET_CONFIG, CONFIG_HEADER.pack(32, 1, 0) + b"\1")
    assert harness.backend.take_calls() == [("set_config", 32, b"\1")]


@pytest.mark.parametrize(
    "payload",
    [
        CONFIG_HEADER.pack(0, 1, 0) + b"\1",
        CONFIG_HEADER.pack(32, 2, 0) + b"\1",
        CONFIG_HEADER.pack(32, 1, 7) + b"\1",
        CONFIG_HEADER.pack(0xFFFFFFFF, 1, 0) + b"\1",
        b"\0" * 3,
    ],
)
def test_bad_set_config_never_disconnects(harness: Harness, payload: bytes) -> None:
    assert not harness.acked(R.SET_CONFIG, payload)
    answer = harness.send(R.SET_CONFIG, payload)
    assert answer.reply == b""
    assert answer.failure is not None


# What applies to all messages

SIZES = {
    R.SET_FEATURES: 8,
    R.SET_PROTOCOL_FEATURES: 8,
    R.SET_OWNER: 0,
    R.RESET_OWNER: 0,
    R.RESET_DEVICE: 0,
    R.SET_STATUS: 8,
    R.SET_VRING_NUM: 8,
    R.SET_VRING_ADDR: 40,
    R.SET_VRING_BASE: 8,
    R.SET_VRING_KICK: 8,
    R.SET_VRING_CALL: 8,
    R.SET_VRING_ERR: 8,
    R.SET_VRING_ENABLE: 8,
    R.SET_BACKEND_REQ_FD: 0,
    R.ADD_MEM_REG: 40,
    R.REM_MEM_REG: 40,
}


@pytest.mark.parametrize("request_", SIZES)
@pytest.mark.parametrize("difference", [-1, 1])
def test_payload_of_the_wrong_size(harness: Harness, request_: Request, difference: int) -> None:
    size = SIZES[request_] + difference
    if size >= 0:
        assert not harness.acked(request_, bytes(size), 1)
        assert harness.backend.take_calls() == []


@pytest.mark.parametrize(
    "request_", [R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_QUEUE_NUM, R.GET_MAX_MEM_SLOTS]
)
def test_surplus_on_a_query_disconnects(harness: Harness, request_: Request) -> None:
    with pytest.raises(VhostUserError, match=f"{request_.name}: payload"):
        harness.send(request_, b"1")
    with pytest.raises(VhostUserError, match=f"{request_.name}: 1 file descriptors"):
        harness.send(request_, fds=1)


@pytest.mark.parametrize(
    "request_",
    [
        R.IOTLB_MSG,
        R.SET_VRING_ENDIAN,
        44,
        0xFFFFFFFF,
    ],
)
def test_messages_that_are_not_offered(harness: Harness, request_: int) -> None:
    assert not harness.acked(request_, bytes(16), 1)
    with pytest.raises(VhostUserError, match="not offered"):
        harness.send(request_, bytes(16), 1)


# Requests in flight


def test_inflight_memory_is_made_and_comes_back(harness: Harness) -> None:
    for size in (20, 24):
        wanted = INFLIGHT.pack(0, 0, 2, 128).ljust(size, b"\0")
        answer = harness.send(R.GET_INFLIGHT_FD, wanted)
        reply = answer.reply[HEADER.size :]
        mmap_size, _, num_queues, queue_size = INFLIGHT.unpack_from(reply)
        assert (len(reply), num_queues, queue_size) == (size, 2, 128)
        (fd,) = answer.fds.take_all()
        assert os.fstat(fd).st_size == mmap_size
        os.close(fd)
        harness.send(R.SET_INFLIGHT_FD, reply, 1)
    made, given = harness.backend.take_calls()[-2:]
    assert made == ("make_inflight", 2, 128)
    assert given == ("set_inflight", InflightDescription(mmap_size, 0, 2, 128, -1))


@pytest.mark.parametrize("counts", [(0, 128), (3, 128), (1, 0), (1, 32769)])
@pytest.mark.parametrize("request_", [R.GET_INFLIGHT_FD, R.SET_INFLIGHT_FD])
def test_inflight_memory_for_queues_that_are_not_there(
    harness: Harness, request_: int, counts: tuple[int, int]
) -> None:
    payload = INFLIGHT.pack(4096, 0, *counts)
    with pytest.raises(VhostUserError, match=r"INFLIGHT_FD: (\d queues of 2|queue size)"):
        harness.send(request_, payload, int(request_ == R.SET_INFLIGHT_FD))
    assert harness.backend.take_calls() == []


# Reset and status


@pytest.mark.parametrize("how", [(R.RESET_DEVICE, b""), (R.SET_STATUS, bytes(8))])
def test_reset_stops_everything_and_forgets_the_driver(
    harness: Harness, how: tuple[int, bytes]
) -> None:
    harness.send(R.SET_STATUS, U64.pack(0xF))
    harness.start(1)
    harness.send(R.SET_VRING_ENABLE, VRING_STATE.pack(1, 1))
    harness.backend.take_calls()
    assert harness.acked(*how)
    calls = harness.backend.take_calls()
    assert ("stop_vring", 1) in calls
    assert ("stop_vring", 0) not in calls
    assert ("set_vring_enabled", 1, False) in calls
    assert ("set_inflight", None) in calls
    assert calls[-1] == ("set_features", 0)
    assert harness.query(R.GET_STATUS) == bytes(8)
    # Of the vring nothing is left but where it stopped; the connection's own features are.
    assert not harness.acked(R.SET_VRING_KICK, U64.pack(1), 1)
    assert VRING_STATE.unpack(harness.query(R.GET_VRING_BASE, VRING_STATE.pack(1, 0))) == (1, 7)
    harness.send(R.SET_FEATURES, U64.pack(F_VERSION_1 | F_PROTOCOL_FEATURES))
    harness.start(1)


def test_status_is_what_the_driver_wrote_and_what_the_device_needs(harness: Harness) -> None:
    for status in (1, 3, 0xB, 0xF):
        harness.send(R.SET_STATUS, U64.pack(status | 0x40))
        assert harness.query(R.GET_STATUS) == U64.pack(status)
    harness.backend.broken = True
    assert harness.query(R.GET_STATUS) == U64.pack(0x4F)
    assert not harness.acked(R.SET_STATUS, U64.pack(0x100))


def test_features_that_will_not_do_are_not_ok(harness: Harness) -> None:
    answer = harness.send(R.SET_STATUS, U64.pack(0xB), need_reply=True)
    assert (answer.failure, answer.remark) == (None, None)
    harness.backend.demanding = True
    answer = harness.send(R.SET_STATUS, U64.pack(0xB), need_reply=True)
    assert answer.reply[-8:] == bytes(8)
    assert answer.remark == "SET_STATUS: FEATURES_OK refused: FEATURE is missing"
    assert harness.query(R.GET_STATUS) == U64.pack(0x3)
    assert harness.send(R.SET_STATUS, U64.pack(0x3)).remark is None
    harness.send(R.SET_FEATURES, U64.pack(F_VERSION_1 | FEATURE | F_PROTOCOL_FEATURES))
    assert harness.send(R.SET_STATUS, U64.pack(0xB)).remark is None
    assert harness.query(R.GET_STATUS) == U64.pack(0xB)


def test_features_of_a_legacy_driver_are_not_ok(fresh: Harness) -> None:
    answer = fresh.send(R.SET_STATUS, U64.pack(0xB))
    assert answer.remark is not None
    assert "VERSION_1" in answer.remark
    assert fresh.query(R.GET_STATUS) == U64.pack(0x3)


def random_message(rng: random.Random) -> tuple[int, bytes, int]:
    """A message that is often nearly right."""
    request = rng.choice(
        [*SIZES, R.SET_LOG_BASE, R.GET_VRING_BASE, R.GET_CONFIG, R.SET_CONFIG, R.SET_MEM_TABLE]
    )
    size = SIZES.get(request, rng.choice([8, 16, 40]))
    numbers = [rng.choice([0, 1, 2, 16, 128, 0x1000, 0xFFFFFFFF]) for _ in range(size // 4)]
    payload = b"".join(number.to_bytes(4, "little") for number in numbers)
    return request, payload, rng.choice([0, 1, 1, 2])


@given(st.integers(0, 1 << 32))
def test_any_order_of_messages_keeps_the_contract(seed: int) -> None:
    rng = random.Random(seed)
    before = open_fds()
    harness = Harness()
    harness.negotiate()
    running: set[int] = set()
    for _ in range(40):
        try:
            harness.send(*random_message(rng), need_reply=rng.random() < 0.8)
        except VhostUserError:
            break
        for name, *arguments in harness.backend.take_calls():
            if name == "start_vring":
                config = arguments[0]
                assert config.index not in running
                assert config.size.bit_count() == 1
                running.add(config.index)
            elif name == "stop_vring":
                running.remove(arguments[0])
            elif name.startswith("set_vring"):
                assert arguments[0] < 2
    harness.session.close()
    assert open_fds() <= before
