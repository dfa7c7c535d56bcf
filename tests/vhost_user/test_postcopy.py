# SPDX-License-Identifier: Apache-2.0
"""Post-copy migration: no vring starts before all of the guest's memory has come."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from vhostblk.block.io.iovec import view_memory
from vhostblk.vhost_user import postcopy
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    HEADER,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    VRING_STATE,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.postcopy import Postcopy
from vhostblk.virtqueue.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vhost_user.harness import Harness

R = Request

#: A region: guest address, size, user address, offset.
REGION = (0x10000, 0x2000, 0x7000_0000, 0x1000)
#: Where the fake backend maps it.
MAPPED = REGION[0] + (1 << 40)
#: What the front-end is told of it.
TOLD = MEMORY_REGION.pack(*REGION[:2], MAPPED, REGION[3])

#: `struct uffd_msg` of a page fault (userfaultfd(2)): event, flags, address.
FAULT = struct.Struct("=B7xQQ8x")
UFFD_EVENT_PAGEFAULT = 0x12


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Do without the system call; return what gets registered."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(postcopy, "_open", lambda: os.eventfd(0))
    monkeypatch.setattr(Postcopy, "register", lambda _self, *mapped: found.append(mapped))
    return found


def advise(harness: Harness) -> None:
    answer = harness.send(R.POSTCOPY_ADVISE)
    assert len(answer.reply) == HEADER.size
    assert len(answer.fds) == 1
    answer.fds.close()


def listen(harness: Harness) -> None:
    advise(harness)
    assert harness.acked(R.POSTCOPY_LISTEN)


def end(harness: Harness) -> int:
    (value,) = U64.unpack(harness.query(R.POSTCOPY_END))
    return int(value)


def test_front_end_is_told_where_a_table_is_mapped(
    harness: Harness, registered: list[tuple[int, int]]
) -> None:
    listen(harness)
    payload = MEMORY_HEADER.pack(1, 0) + MEMORY_REGION.pack(*REGION)
    answer = harness.send(R.SET_MEM_TABLE, payload, 1)
    assert answer.reply[HEADER.size :] == MEMORY_HEADER.pack(1, 0) + TOLD
    assert registered == [(MAPPED, REGION[1])]


def test_front_end_is_told_where_a_region_is_mapped(
    harness: Harness, registered: list[tuple[int, int]]
) -> None:
    listen(harness)
    answer = harness.send(R.ADD_MEM_REG, SINGLE_REGION.pack(0, *REGION), 1)
    assert answer.reply[HEADER.size :] == U64.pack(0) + TOLD
    assert registered == [(MAPPED, REGION[1])]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("request_", [R.SET_MEM_TABLE, R.ADD_MEM_REG, R.REM_MEM_REG, R.NONE])
def test_front_end_confirms_that(harness: Harness, request_: Request) -> None:
    listen(harness)
    harness.backend.take_calls()
    assert harness.send(request_, U64.pack(0)).reply == b""
    assert harness.backend.take_calls() == []
    assert end(harness) == 0
    if request_ != R.SET_MEM_TABLE:  # of which it is an empty one
        with pytest.raises(VhostUserError):
            harness.send(request_, U64.pack(0))


@pytest.mark.usefixtures("registered")
def test_what_is_no_confirmation_ends_the_session(harness: Harness) -> None:
    listen(harness)
    with pytest.raises(VhostUserError, match="payload of 8 bytes"):
        harness.send(R.ADD_MEM_REG, U64.pack(1))


@pytest.mark.usefixtures("registered")
def test_vrings_start_at_the_end(harness: Harness) -> None:
    listen(harness)
    for index in range(2):
        harness.configure(index, base=5)
        harness.backend.take_calls()
        harness.send(R.SET_VRING_KICK, U64.pack(index), 1)
        assert harness.backend.take_calls() == [("claim",)]
    assert end(harness) == 0
    started = [call for call in harness.backend.take_calls() if call[0] == "start_vring"]
    assert [(config.index, config.next_avail, kick) for _, config, kick in started] == [
        (0, 5, True),
        (1, 5, True),
    ]
    assert harness.query(R.GET_VRING_BASE, VRING_STATE.pack(0, 0)) == VRING_STATE.pack(0, 7)


@pytest.mark.usefixtures("registered")
def test_vring_that_is_stopped_before_the_end_never_starts(harness: Harness) -> None:
    listen(harness)
    harness.start(0, base=5)
    assert harness.query(R.GET_VRING_BASE, VRING_STATE.pack(0, 0)) == VRING_STATE.pack(0, 5)
    harness.start(1)
    assert harness.acked(R.RESET_DEVICE)
    harness.backend.take_calls()
    assert end(harness) == 0
    assert harness.backend.take_calls() == []


@pytest.mark.usefixtures("registered")
def test_vring_that_could_never_start_is_refused_before_the_end(harness: Harness) -> None:
    listen(harness)
    harness.configure()
    harness.backend.failing["claim"] = VhostUserError("another process has it")
    with pytest.raises(VhostUserError, match="SET_VRING_KICK: another process has it"):
        harness.send(R.SET_VRING_KICK, U64.pack(0), 1)


@pytest.mark.usefixtures("registered")
def test_failure_at_the_end_is_told(harness: Harness) -> None:
    listen(harness)
    harness.start()
    harness.backend.failing["start_vring"] = VhostUserError("no")
    answer = harness.send(R.POSTCOPY_END)
    assert answer.failure == "POSTCOPY_END: no"
    assert U64.unpack(answer.reply[HEADER.size :]) == (1,)


@pytest.mark.usefixtures("registered")
def test_migration_that_is_over_before_the_switch_is_a_common_one(harness: Harness) -> None:
    advise(harness)
    payload = MEMORY_HEADER.pack(1, 0) + MEMORY_REGION.pack(*REGION)
    assert harness.acked(R.SET_MEM_TABLE, payload, 1)
    harness.configure()
    harness.send(R.SET_VRING_KICK, U64.pack(0), 1)
    assert "start_vring" in [call[0] for call in harness.backend.take_calls()]


@pytest.mark.usefixtures("registered")
def test_messages_out_of_order(harness: Harness) -> None:
    assert not harness.acked(R.POSTCOPY_LISTEN)
    assert end(harness) == 0
    harness.start()
    advise(harness)
    assert not harness.acked(R.POSTCOPY_LISTEN), "a vring runs"
    harness.query(R.GET_VRING_BASE, VRING_STATE.pack(0, 0))
    assert harness.acked(R.POSTCOPY_LISTEN)
    with pytest.raises(VhostUserError, match="under way"):
        harness.send(R.POSTCOPY_ADVISE)


@pytest.mark.usefixtures("registered")
def test_session_that_ends_in_between_leaves_nothing(harness: Harness) -> None:
    listen(harness)
    harness.start()
    assert harness.send(R.ADD_MEM_REG, SINGLE_REGION.pack(0, *REGION), 1).reply
    # The fixture counts the descriptors.


def test_not_offered_where_there_is_no_userfaultfd(
    monkeypatch: pytest.MonkeyPatch, harness: Harness
) -> None:
    monkeypatch.setattr(postcopy, "_open", _refuse)
    (offered,) = U64.unpack(type(harness)().query(R.GET_PROTOCOL_FEATURES))
    assert not offered & ProtocolFeature.PAGEFAULT
    with pytest.raises(VhostUserError, match="not permitted"):
        harness.send(R.POSTCOPY_ADVISE)


def _refuse() -> int:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4 * mmap.PAGESIZE)
    yield Mapping(fd, 0, 4 * mmap.PAGESIZE)
    os.close(fd)


@pytest.mark.skipif(not postcopy.available(), reason="no userfaultfd here")
def test_memory_can_be_touched_after_the_end(mapping: Mapping) -> None:
    transfer = Postcopy()
    os.close(transfer.advise())
    transfer.listen()
    transfer.register(*mapping.pages)
    assert transfer.end() == {}
    assert not transfer.listening
    assert bytes(view_memory(mapping.address, 4)) == bytes(4), "it would wait for ever"


@pytest.mark.skipif(not postcopy.available(), reason="no userfaultfd here")
def test_front_end_hears_of_an_access_before_the_end(mapping: Mapping) -> None:
    transfer = Postcopy()
    faults = transfer.advise()
    transfer.listen()
    transfer.register(*mapping.pages)
    address = mapping.address + 2 * mmap.PAGESIZE
    content = ctypes.create_string_buffer(4)
    # Not by what keeps the interpreter's lock meanwhile.
    reading = threading.Thread(target=ctypes.memmove, args=(content, address, 4))
    reading.start()
    select.select([faults], [], [])
    event, _, where = FAULT.unpack(os.read(faults, FAULT.size))
    assert (event, where & -mmap.PAGESIZE) == (UFFD_EVENT_PAGEFAULT, address)
    transfer.close()
    reading.join()
    os.close(faults)
