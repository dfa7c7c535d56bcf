# SPDX-License-Identifier: Apache-2.0
"""Transfer of the device's state, of which a disk has none."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from vhostblk.vhost_user.layout import DEVICE_STATE, HEADER, U64, Request

if TYPE_CHECKING:
    from tests.vhost_user.harness import Harness

R = Request

SAVE, LOAD = 0, 1
OK, FAILED, NO_FD = 0, 1, 1 << 8


def transfer(harness: Harness, direction: int, fd: int, phase: int = 0) -> int:
    """Begin a transfer; return the reply."""
    answer = harness.send_fds(R.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(direction, phase), [fd])
    (value,) = U64.unpack(answer.reply[HEADER.size :])
    assert bool(value & FAILED) == (answer.failure is not None)
    return int(value)


def check(harness: Harness) -> int:
    (value,) = U64.unpack(harness.query(R.CHECK_DEVICE_STATE))
    return int(value)


def test_saving_writes_nothing(harness: Harness) -> None:
    read, write = os.pipe()
    assert transfer(harness, SAVE, write) == OK | NO_FD
    assert os.read(read, 1) == b""
    os.close(read)
    assert check(harness) == OK


def test_loading_takes_nothing(harness: Harness) -> None:
    read, write = os.pipe()
    assert transfer(harness, LOAD, read) == OK | NO_FD
    os.close(write)
    assert check(harness) == OK
    assert check(harness) == OK


def test_state_of_another_device_is_told(harness: Harness) -> None:
    read, write = os.pipe()
    transfer(harness, LOAD, read)
    os.write(write, b"something")
    os.close(write)
    assert check(harness) == FAILED


def test_state_that_has_not_ended_is_told_and_never_waited_for(harness: Harness) -> None:
    read, write = os.pipe()
    shared = os.dup(read)
    transfer(harness, LOAD, read)
    os.set_blocking(shared, True)
    assert check(harness) == FAILED
    os.close(shared)
    os.close(write)


def test_another_transfer_takes_the_place_of_the_first(harness: Harness) -> None:
    pipes = [os.pipe() for _ in range(2)]
    for read, _ in pipes:
        transfer(harness, LOAD, read)
    with pytest.raises(BrokenPipeError):
        os.write(pipes[0][1], b"1")
    for _, write in pipes:
        os.close(write)
    assert check(harness) == OK


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (SAVE, 1), (LOAD, 1)])
def test_unknown_ways_are_refused(harness: Harness, direction: int, phase: int) -> None:
    read, write = os.pipe()
    assert transfer(harness, direction, write, phase) == FAILED | NO_FD
    assert os.read(read, 1) == b""
    os.close(read)


def test_not_while_a_vring_runs(harness: Harness) -> None:
    harness.start()
    read, write = os.pipe()
    assert transfer(harness, LOAD, read) == FAILED | NO_FD
    os.close(write)


def test_only_pipes_are_read(harness: Harness) -> None:
    ours, theirs = socket.socketpair()
    assert transfer(harness, LOAD, theirs.detach()) == FAILED | NO_FD
    ours.close()
    assert transfer(harness, LOAD, os.open("/dev/zero", os.O_RDONLY)) == FAILED | NO_FD
