# SPDX-License-Identifier: Apache-2.0
"""Event descriptors from a front-end that is not trusted."""

from __future__ import annotations

import os

import pytest

from vhostblk.virtqueue.errors import SetupError
from vhostblk.virtqueue.eventfd import adopt_eventfd, clear, signal


def test_eventfd_is_adopted_and_made_non_blocking() -> None:
    fd = os.eventfd(0)
    assert adopt_eventfd(fd, "kick") == fd
    clear(fd)
    signal(fd)
    assert os.eventfd_read(fd) == 1
    os.close(fd)


def test_full_counter_does_not_block() -> None:
    fd = adopt_eventfd(os.eventfd(0), "call")
    os.eventfd_write(fd, (1 << 64) - 2)
    signal(fd)
    os.close(fd)


def test_nothing_blocks_where_the_front_end_takes_the_flag_away() -> None:
    fd = adopt_eventfd(os.eventfd(0), "call")
    os.set_blocking(fd, True)
    clear(fd)
    os.eventfd_write(fd, (1 << 64) - 2)
    signal(fd)
    clear(fd)
    clear(fd)
    os.close(fd)


@pytest.mark.parametrize("make", [lambda: os.pipe(), lambda: (os.memfd_create("x"),)])
def test_anything_else_is_closed_and_refused(make: object) -> None:
    assert callable(make)
    first, *others = make()
    with pytest.raises(SetupError, match="the kick descriptor is not an eventfd"):
        adopt_eventfd(first, "kick")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    for fd in others:
        os.close(fd)
