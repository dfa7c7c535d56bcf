# SPDX-License-Identifier: Apache-2.0
"""Which descriptors get a command, and which only an answer."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.pr.client import parameters, reserve_in, reserve_out
from vhostblk.pr.commands import Commands
from vhostblk.pr.multipath import is_multipath
from vhostblk.reservations.sense import INVALID_OPCODE, IO_ERROR
from vhostblk.reservations.wire import Request

if TYPE_CHECKING:
    from collections.abc import Callable

READ = reserve_in()
WRITE = reserve_out()


def no_ioctl(fd: int, request: int, memory: bytearray) -> object:
    raise AssertionError("a command was sent")


def fifo() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def sock() -> int:
    return socket.socket().detach()


def regular() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def directory() -> int:
    return os.open("/", os.O_RDONLY)


def terminal() -> int:
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def path_only() -> int:
    return os.open("/dev/null", os.O_PATH)


@pytest.mark.parametrize(
    "opened", [fifo, sock, regular, directory, terminal, null, path_only], ids=lambda f: f.__name__
)
def test_what_is_no_device_gets_no_command(opened: Callable[[], int]) -> None:
    fd = opened()
    try:
        reply = Commands(1000, ioctl=no_ioctl).execute(Request(READ, fd, b""))
        assert (reply.status, reply.sense) == (2, IO_ERROR.encode())
    finally:
        os.close(fd)


@pytest.mark.parametrize("opened", [directory, path_only], ids=lambda f: f.__name__)
def test_writing_through_what_is_open_for_reading(opened: Callable[[], int]) -> None:
    fd = opened()
    try:
        reply = Commands(1000, ioctl=no_ioctl).execute(Request(WRITE, fd, parameters()))
        assert (reply.status, reply.sense) == (2, INVALID_OPCODE.encode())
    finally:
        os.close(fd)


def fake_status(monkeypatch: pytest.MonkeyPatch, mode: int, device: int) -> None:
    status = os.stat_result((mode, 0, 0, 0, 0, 0, 0, 0, 0, 0), {"st_rdev": device})
    monkeypatch.setattr("vhostblk.pr.commands.os.fstat", lambda fd: status)


@pytest.mark.parametrize(
    ("mode", "major", "sent"),
    [(0o060000, 8, True), (0o020000, 21, True), (0o020000, 1, False), (0o100000, 8, False)],
)
def test_block_devices_and_generic_ones_get_commands(
    monkeypatch: pytest.MonkeyPatch, mode: int, major: int, sent: bool
) -> None:
    commands: list[int] = []
    fake_status(monkeypatch, mode, os.makedev(major, 3))
    executor = Commands(1000, ioctl=lambda fd, *_: commands.append(fd), is_map=lambda _: False)
    fd = null()
    executor.execute(Request(WRITE, fd, parameters()))
    os.close(fd)
    assert commands == ([fd] if sent else [])


def test_a_file_system_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fstat(fd: int) -> os.stat_result:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    fd = null()
    with monkeypatch.context() as patch:  # pytest itself needs it
        patch.setattr("vhostblk.pr.commands.os.fstat", fstat)
        reply = Commands(1000, ioctl=no_ioctl).execute(Request(READ, fd, b""))
    os.close(fd)
    assert (reply.status, reply.sense) == (2, IO_ERROR.encode())


def test_a_multipath_map_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """One path alone must not be reserved."""
    fake_status(monkeypatch, 0o060000, os.makedev(253, 5))
    warnings: list[str] = []
    executor = Commands(
        1000, lacking="why", ioctl=no_ioctl, is_map=lambda _: True, warn=warnings.append
    )
    fd = null()
    reply = executor.execute(Request(WRITE, fd, parameters()))
    os.close(fd)
    assert (reply.status, reply.sense) == (2, INVALID_OPCODE.encode())
    assert warnings == ["device 253:5 is a multipath map: why"]


def test_what_is_no_map() -> None:
    assert not is_multipath(os.makedev(7, 0))
    assert not is_multipath(os.makedev(8, 0))
    assert not is_multipath(os.makedev(4000, 4000))
