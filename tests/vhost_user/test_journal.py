# SPDX-License-Identifier: Apache-2.0
"""A journal keeps and hands out messages with descriptors that are in force, and no others.

`tests/exports/test_moving.py` tests that a session continues with it unchanged.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_fds
from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.journal import Journal
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    DEVICE_STATE,
    F_PROTOCOL_FEATURES,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    Request,
)
from vhostblk.vhost_user.restate import SessionState, as_message
from vhostblk.vhost_user.vring import Vring
from vhostblk.virtqueue.config import VringConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Regions: guest address, size, user address, offset.
REGIONS = [(n << 20, 1 << 20, n << 30, 0) for n in range(3)]


class Keeper:
    """A journal, and the state of its session."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.vrings = [Vring(), Vring()]
        self.state = SessionState(8, F_PROTOCOL_FEATURES, 0, [], False, self.vrings)

    def tell(
        self, request: Request, payload: bytes = b"", fds: int = 0, reply: bytes | None = b""
    ) -> None:
        """Carry out a message, as a server does; `reply` None: it fails."""
        message = Message(request, 1, payload, FdList(os.eventfd(0) for _ in range(fds)))
        copy = self.journal.copy(message)
        message.fds.close()
        self.journal.note(copy, reply, self.state)

    def start(self, index: int) -> None:
        vring = self.vrings[index]
        vring.call_set = vring.enabled = True
        self.tell(Request.SET_VRING_CALL, U64.pack(index), 1)
        vring.size, vring.addresses = 16, (0x1000, 0x2000, 0x3000)
        vring.running = VringConfig(index, 16, 0x1000, 0x2000, 0x3000, 5)
        self.tell(Request.SET_VRING_KICK, U64.pack(index), 1)

    def stop(self, index: int) -> None:
        self.vrings[index].running = None
        self.vrings[index].call_set = False
        self.tell(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0), reply=VRING_STATE.pack(0, 7))

    def hand_out(self) -> list[tuple[int, bytes, int]]:
        said = self.journal.hand_out(self.state)
        shown = [(item.request, item.payload, len(item.fds)) for item in said]
        for item in said:
            item.fds.close()
        return shown

    def kept(self) -> list[int]:
        """Hand out all messages; return those with descriptors."""
        return [request for request, _, fds in self.hand_out() if fds]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    before = open_fds()
    keeper = Keeper()
    yield keeper
    keeper.journal.close()
    assert open_fds() <= before


def region(number: int) -> bytes:
    return SINGLE_REGION.pack(0, *REGIONS[number])


def test_order(keeper: Keeper) -> None:
    """Memory comes before logs, features before the status, a vring's settings before its kick."""
    keeper.tell(Request.SET_LOG_BASE, bytes(16), 1)
    keeper.tell(Request.SET_INFLIGHT_FD, bytes(24), 1)
    keeper.tell(Request.ADD_MEM_REG, region(0), 1)
    keeper.start(1)
    keeper.state = keeper.state._replace(status=15, config=[(32, b"\0")])
    assert keeper.hand_out() == [
        (Request.SET_PROTOCOL_FEATURES, U64.pack(8), 0),
        (Request.SET_FEATURES, U64.pack(F_PROTOCOL_FEATURES), 0),
        (Request.SET_CONFIG, CONFIG_HEADER.pack(32, 1, 0) + b"\0", 0),
        (Request.ADD_MEM_REG, region(0), 1),
        (Request.SET_LOG_BASE, bytes(16), 1),
        (Request.SET_STATUS, U64.pack(15), 0),
        (Request.SET_INFLIGHT_FD, bytes(24), 1),
        (Request.SET_VRING_ENABLE, VRING_STATE.pack(0, 0), 0),
        (Request.SET_VRING_BASE, VRING_STATE.pack(0, 0), 0),
        (Request.SET_VRING_ENABLE, VRING_STATE.pack(1, 1), 0),
        (Request.SET_VRING_CALL, U64.pack(1), 1),
        (Request.SET_VRING_NUM, VRING_STATE.pack(1, 16), 0),
        (Request.SET_VRING_ADDR, VRING_ADDR.pack(1, 0, 0x1000, 0x3000, 0x2000, 0), 0),
        (Request.SET_VRING_BASE, VRING_STATE.pack(1, 5), 0),
        (Request.SET_VRING_KICK, U64.pack(1), 1),
    ]
    assert keeper.journal.hand_out(keeper.state._replace(vrings=[]))[0].request == 16


def test_what_was_said_since_the_start_comes_behind_it(keeper: Keeper) -> None:
    keeper.start(0)
    vring = keeper.vrings[0]
    vring.size, vring.base, vring.base_set_since_start = 8, 9, True
    vring.log_addr = 0x77
    said = keeper.hand_out()
    kick = said.index((Request.SET_VRING_KICK, U64.pack(0), 1))
    before, behind = said[:kick], said[kick + 1 :]
    assert (Request.SET_VRING_NUM, VRING_STATE.pack(0, 16), 0) in before
    assert (Request.SET_VRING_BASE, VRING_STATE.pack(0, 5), 0) in before
    addresses = VRING_ADDR.pack(0, 1, 0x1000, 0x3000, 0x2000, 0x77)
    assert (Request.SET_VRING_ADDR, addresses, 0) in before
    assert (Request.SET_VRING_NUM, VRING_STATE.pack(0, 8), 0) in behind
    assert (Request.SET_VRING_BASE, VRING_STATE.pack(0, 9), 0) in behind


def test_a_vring_that_a_message_started_is_started_by_one(keeper: Keeper) -> None:
    keeper.start(0)
    keeper.vrings[0].inband = True
    keeper.tell(Request.VRING_KICK, VRING_STATE.pack(0, 0))
    assert keeper.journal.movable
    said = keeper.hand_out()
    assert (Request.VRING_KICK, VRING_STATE.pack(0, 0), 0) in said
    assert Request.SET_VRING_KICK not in [request for request, _, _ in said]


def test_the_last_of_a_kind_counts(keeper: Keeper) -> None:
    for _ in range(3):
        keeper.start(0)
        keeper.tell(Request.SET_LOG_FD, b"", 1)
        keeper.tell(Request.SET_BACKEND_REQ_FD, b"", 1)
        keeper.tell(Request.SET_INFLIGHT_FD, bytes(24), 1)
    kept = keeper.kept()
    assert len(kept) == len(set(kept)) + 1  # the area of the vring that runs is another one
    assert kept.count(Request.SET_INFLIGHT_FD) == 2


def test_what_failed_is_not_kept(keeper: Keeper) -> None:
    keeper.tell(Request.SET_LOG_BASE, bytes(16), 1, reply=None)
    keeper.tell(Request.SET_VRING_KICK, U64.pack(0), 1, reply=None)
    keeper.tell(Request.SET_VRING_KICK, U64.pack(77), 1, reply=None)
    assert keeper.kept() == []


def test_questions_are_not_kept(keeper: Keeper) -> None:
    keeper.tell(Request.GET_FEATURES, reply=U64.pack(1))
    keeper.tell(Request.SET_OWNER, fds=1)
    assert keeper.kept() == []


def test_configuration_is_asked_for_as_it_was_answered(keeper: Keeper) -> None:
    header = CONFIG_HEADER.pack(0, 4, 0)
    keeper.tell(Request.GET_CONFIG, header + bytes(4), reply=header + b"abcd")
    keeper.tell(Request.GET_CONFIG, CONFIG_HEADER.pack(0, 999, 0) + bytes(4), reply=None)
    assert keeper.hand_out()[-1] == (Request.GET_CONFIG, header + b"abcd", 0)


def test_a_vring_that_stops_is_not_started(keeper: Keeper) -> None:
    keeper.start(0)
    keeper.stop(0)
    assert keeper.kept() == []


def test_a_restart_that_fails_leaves_nothing_to_start(keeper: Keeper) -> None:
    keeper.start(0)
    keeper.vrings[0].running = None
    keeper.tell(Request.SET_VRING_KICK, U64.pack(0), 1, reply=None)
    assert keeper.kept() == [Request.SET_VRING_CALL]


def test_features_that_stop_vrings(keeper: Keeper) -> None:
    keeper.start(0)
    keeper.start(1)
    keeper.vrings[1].running = None
    keeper.tell(Request.SET_FEATURES, U64.pack(1))
    kept = keeper.kept()
    assert kept.count(Request.SET_VRING_KICK) == 1
    assert kept.count(Request.SET_VRING_CALL) == 2


def test_memory_is_told_region_by_region(keeper: Keeper) -> None:
    table = VRING_STATE.pack(2, 0) + b"".join(MEMORY_REGION.pack(*r) for r in REGIONS[:2])
    keeper.tell(Request.SET_MEM_TABLE, table, 2)
    keeper.tell(Request.ADD_MEM_REG, region(2), 1)
    keeper.tell(Request.REM_MEM_REG, region(0))
    regions = [(Request.ADD_MEM_REG, region(number), 1) for number in (1, 2)]
    assert [said for said in keeper.hand_out() if said[2]] == regions
    keeper.tell(Request.SET_MEM_TABLE, table, 2)
    keeper.tell(Request.SET_MEM_TABLE, VRING_STATE.pack(1, 0) + table[8:40], 1)
    memory = [said for said in keeper.hand_out() if said[0] == Request.ADD_MEM_REG]
    assert memory == [(Request.ADD_MEM_REG, region(0), 1)]


@pytest.mark.parametrize("request_", [Request.RESET_DEVICE, Request.SET_STATUS])
def test_a_reset_leaves_memory_channel_and_log(keeper: Keeper, request_: Request) -> None:
    keeper.tell(Request.SET_BACKEND_REQ_FD, b"", 1)
    keeper.tell(Request.ADD_MEM_REG, region(0), 1)
    keeper.tell(Request.SET_INFLIGHT_FD, bytes(24), 1)
    keeper.tell(Request.SET_LOG_BASE, bytes(16), 1)
    keeper.start(0)
    keeper.vrings[:] = [Vring(), Vring()]
    keeper.tell(request_, U64.pack(0) if request_ == Request.SET_STATUS else b"")
    assert keeper.kept() == [
        Request.ADD_MEM_REG,
        Request.SET_LOG_BASE,
        Request.SET_BACKEND_REQ_FD,
    ]


def test_each_vring_keeps_the_area_that_it_started_with(keeper: Keeper) -> None:
    keeper.start(0)
    keeper.tell(Request.SET_INFLIGHT_FD, b"a" * 24, 1)
    keeper.start(1)
    keeper.tell(Request.SET_INFLIGHT_FD, b"b" * 24, 1)
    order = [
        (request, payload[:1])
        for request, payload, fds in keeper.hand_out()
        if fds and request != Request.SET_VRING_CALL
    ]
    assert order == [
        (Request.SET_VRING_KICK, b"\0"),
        (Request.SET_INFLIGHT_FD, b"a"),
        (Request.SET_VRING_KICK, b"\1"),
        (Request.SET_INFLIGHT_FD, b"b"),
    ]


def test_areas_that_nothing_uses_are_closed(keeper: Keeper) -> None:
    before = open_fds()
    for _ in range(3):
        keeper.tell(Request.SET_INFLIGHT_FD, bytes(24), 1)
        keeper.start(0)
        keeper.stop(0)
    assert len(open_fds() - before) == 1


def test_a_transfer_is_kept_while_a_state_is_expected(keeper: Keeper) -> None:
    keeper.tell(Request.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(0, 0), 1)  # to save
    assert keeper.kept() == []
    keeper.state = keeper.state._replace(loading=True)
    keeper.tell(Request.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(1, 0), 1)
    keeper.start(0)
    assert keeper.kept()[0] == Request.SET_DEVICE_STATE_FD
    keeper.tell(Request.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(1, 0), 1)
    keeper.state = keeper.state._replace(loading=False)
    keeper.tell(Request.CHECK_DEVICE_STATE)
    assert Request.SET_DEVICE_STATE_FD not in keeper.kept()


@pytest.mark.parametrize("result", [U64.pack(0), None])
def test_session_stays_while_memory_arrives(keeper: Keeper, result: bytes | None) -> None:
    def movable() -> bool:
        return keeper.journal.movable

    keeper.tell(Request.POSTCOPY_ADVISE)
    assert not movable()
    keeper.tell(Request.POSTCOPY_LISTEN)
    keeper.tell(Request.ADD_MEM_REG, region(0), 1)
    keeper.tell(Request.ADD_MEM_REG, U64.pack(0))
    keeper.tell(Request.SET_MEM_TABLE, U64.pack(0))
    keeper.tell(Request.SET_VRING_KICK, U64.pack(0), 1)
    keeper.tell(Request.SET_VRING_KICK, U64.pack(1), 1)
    assert not movable()
    keeper.vrings[0].running = VringConfig(0, 16, 0, 0, 0, 0)
    keeper.tell(Request.POSTCOPY_END, reply=result)
    assert movable()
    assert keeper.kept() == [Request.ADD_MEM_REG, Request.SET_VRING_KICK]


def test_session_moves_again_where_memory_came_before_the_switch(keeper: Keeper) -> None:
    keeper.tell(Request.POSTCOPY_ADVISE)
    keeper.start(0)
    assert keeper.journal.movable


def test_a_message_is_made_with_duplicates(keeper: Keeper) -> None:
    keeper.start(0)
    for said in keeper.journal.hand_out(keeper.state):
        message = as_message(said)
        assert (message.request, message.payload) == (said.request, said.payload)
        assert len(message.fds) == len(said.fds)
        assert not set(message.fds) & set(said.fds)
        message.fds.close()
        said.fds.close()
