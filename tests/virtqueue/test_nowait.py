# SPDX-License-Identifier: Apache-2.0
"""Descriptors whose O_NONBLOCK a peer has taken away make nobody wait."""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from vhostblk.virtqueue import nowait

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = (1 << 64) - 2


@contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture(params=["io_submit", "poll"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal with and without io_submit(2)."""
    assert nowait._threads.signaller is not None
    if request.param == "poll":
        monkeypatch.setattr(nowait._threads, "signaller", None)


@pytest.mark.usefixtures("way")
def test_signals_add_up() -> None:
    with eventfd() as fd, eventfd() as other:
        for _ in range(1000):
            nowait.signal(fd)
            nowait.signal(other)
        assert os.eventfd_read(fd) == os.eventfd_read(other) == 1000


@pytest.mark.usefixtures("way")
def test_a_full_counter_stays_so() -> None:
    with eventfd() as fd:
        os.eventfd_write(fd, FULL)
        for _ in range(20):
            nowait.signal(fd)
        assert os.eventfd_read(fd) >= FULL


def test_threads_signal_at_once() -> None:
    with eventfd() as fd, eventfd() as other:

        def signal(which: int) -> None:
            for _ in range(2000):
                nowait.signal(which)

        threads = [threading.Thread(target=signal, args=(which,)) for which in (fd, fd, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (os.eventfd_read(fd), os.eventfd_read(other)) == (4000, 2000)


def test_an_empty_counter_is_not_waited_for() -> None:
    with eventfd() as fd:
        nowait.discard(fd)
        os.eventfd_write(fd, 5)
        nowait.discard(fd)
        os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)


def test_reading_from_a_pipe() -> None:
    reader, writer = os.pipe()
    with closing(os.fdopen(reader, "rb", 0)):
        with pytest.raises(BlockingIOError):
            nowait.read(reader, 1)
        os.write(writer, b"ab")
        assert nowait.read(reader, 1) == b"a"
        os.close(writer)
        assert nowait.read(reader, 8) == b"b"
        assert nowait.read(reader, 8) == b""
