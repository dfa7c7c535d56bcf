# SPDX-License-Identifier: Apache-2.0
"""What a journal keeps: replayed to a fresh session it gives the state that was."""

from __future__ import annotations

import os
import struct

import pytest

from tests.descriptors import open_fds
from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.journal import Journal, Said, as_message
from vhostblk.vhost_user.layout import Request

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
REGION = struct.Struct("=QQQQ")


def tell(
    journal: Journal, request: Request, payload: bytes, fds: int = 0, reply: bytes = b""
) -> None:
    """Have a message carried out, as a server does."""
    message = Message(request, 1, payload, FdList(os.eventfd(0) for _ in range(fds)))
    copy = journal.copy(message)
    message.fds.close()
    journal.note(copy, reply)


def kept(journal: Journal) -> list[tuple[int, bytes, int]]:
    return [(said.request, said.payload, len(said.fds)) for said in journal.said()]


@pytest.fixture
def journal() -> Journal:
    return Journal()


def start(journal: Journal, index: int) -> None:
    tell(journal, Request.SET_VRING_CALL, U64.pack(index), 1)
    tell(journal, Request.SET_VRING_KICK, U64.pack(index), 1)
    tell(journal, Request.SET_VRING_ENABLE, STATE.pack(index, 1))


def movable(journal: Journal) -> bool:
    return journal.movable  # for a type checker, a property stays what it was


def test_the_last_of_a_kind_counts(journal: Journal) -> None:
    for features in (1, 2, 3):
        tell(journal, Request.SET_FEATURES, U64.pack(features))
    for index in (0, 1, 0):
        tell(journal, Request.SET_VRING_NUM, STATE.pack(index, 64 << index))
    assert kept(journal) == [
        (Request.SET_FEATURES, U64.pack(3), 0),
        (Request.SET_VRING_NUM, STATE.pack(0, 64), 0),
        (Request.SET_VRING_NUM, STATE.pack(1, 128), 0),
    ]


def test_questions_are_not_kept(journal: Journal) -> None:
    tell(journal, Request.GET_FEATURES, b"", reply=U64.pack(1))
    tell(journal, Request.SET_OWNER, b"")
    assert kept(journal) == []


def test_a_vring_is_started_last_and_then_enabled(journal: Journal) -> None:
    start(journal, 1)
    tell(journal, Request.SET_VRING_BASE, STATE.pack(1, 5))
    tell(journal, Request.SET_FEATURES, U64.pack(7))
    order = [request for request, _, _ in kept(journal)]
    assert order == [
        Request.SET_FEATURES,
        Request.SET_VRING_BASE,
        Request.SET_VRING_CALL,
        Request.SET_VRING_KICK,
        Request.SET_VRING_ENABLE,
    ]
    assert journal.running == [1]
    journal.close()


def test_a_vring_that_stops_keeps_its_place(journal: Journal) -> None:
    start(journal, 0)
    tell(journal, Request.GET_VRING_BASE, STATE.pack(0, 0), reply=STATE.pack(0, 77))
    assert journal.running == []
    assert kept(journal) == [
        (Request.SET_VRING_BASE, STATE.pack(0, 77), 0),
        (Request.SET_VRING_ENABLE, STATE.pack(0, 1), 0),
    ]


def test_memory_is_told_region_by_region(journal: Journal) -> None:
    regions = [(n << 20, 1 << 20, n << 30, 0) for n in range(3)]
    table = STATE.pack(2, 0) + REGION.pack(*regions[0]) + REGION.pack(*regions[1])
    tell(journal, Request.SET_MEM_TABLE, table, 2)
    tell(journal, Request.ADD_MEM_REG, bytes(8) + REGION.pack(*regions[2]), 1)
    tell(journal, Request.REM_MEM_REG, bytes(8) + REGION.pack(*regions[0]))
    assert kept(journal) == [
        (Request.ADD_MEM_REG, bytes(8) + REGION.pack(*region), 1) for region in regions[1:]
    ]
    tell(journal, Request.SET_MEM_TABLE, STATE.pack(1, 0) + REGION.pack(*regions[0]), 1)
    assert len(kept(journal)) == 1
    journal.close()


@pytest.mark.parametrize("request_", [Request.RESET_DEVICE, Request.SET_STATUS])
def test_a_reset_leaves_memory_and_channel(journal: Journal, request_: Request) -> None:
    region = bytes(8) + REGION.pack(0, 4096, 0, 0)
    tell(journal, Request.SET_PROTOCOL_FEATURES, U64.pack(8))
    tell(journal, Request.SET_BACKEND_REQ_FD, b"", 1)
    tell(journal, Request.ADD_MEM_REG, region, 1)
    tell(journal, Request.SET_FEATURES, U64.pack(1))
    tell(journal, Request.SET_INFLIGHT_FD, bytes(24), 1)
    tell(journal, Request.SET_STATUS, U64.pack(15))
    start(journal, 0)
    tell(journal, request_, U64.pack(0) if request_ == Request.SET_STATUS else b"")
    assert kept(journal) == [
        (Request.SET_PROTOCOL_FEATURES, U64.pack(8), 0),
        (Request.ADD_MEM_REG, region, 1),
        (Request.SET_BACKEND_REQ_FD, b"", 1),
    ]
    journal.close()


def test_reset_owner_disables(journal: Journal) -> None:
    start(journal, 0)
    tell(journal, Request.RESET_OWNER, b"")
    assert kept(journal)[-1] == (Request.SET_VRING_ENABLE, STATE.pack(0, 0), 0)
    journal.close()


def test_session_stays_while_memory_arrives(journal: Journal) -> None:
    tell(journal, Request.POSTCOPY_ADVISE, b"")
    assert not movable(journal)
    tell(journal, Request.POSTCOPY_LISTEN, b"")
    region = bytes(8) + REGION.pack(0, 4096, 0, 0)
    tell(journal, Request.ADD_MEM_REG, region, 1)
    tell(journal, Request.ADD_MEM_REG, U64.pack(0))
    tell(journal, Request.SET_MEM_TABLE, U64.pack(0))
    start(journal, 0)
    assert not movable(journal)
    tell(journal, Request.POSTCOPY_END, b"", reply=U64.pack(0))
    assert movable(journal)
    assert (Request.ADD_MEM_REG, region, 1) in kept(journal)
    journal.close()


def test_session_moves_again_where_memory_came_before_the_switch(journal: Journal) -> None:
    tell(journal, Request.POSTCOPY_ADVISE, b"")
    start(journal, 0)
    assert movable(journal)
    journal.close()


def test_no_descriptor_is_left() -> None:
    before = open_fds()
    with Journal() as journal:
        region = bytes(8) + REGION.pack(0, 4096, 0, 0)
        for _ in range(2):
            start(journal, 0)
            tell(journal, Request.SET_VRING_ERR, U64.pack(0), 1)
            tell(journal, Request.SET_INFLIGHT_FD, bytes(24), 1)
            tell(journal, Request.ADD_MEM_REG, region, 1)
            tell(journal, Request.GET_VRING_BASE, STATE.pack(0, 0), reply=STATE.pack(0, 1))
        for said in journal.said():
            message = as_message(said)
            assert len(message.fds) == len(said.fds)
            message.fds.close()
        with Journal.of(Said(*said[:2], as_message(said).fds) for said in journal.said()) as other:
            assert kept(other) == kept(journal)
    assert open_fds() <= before
