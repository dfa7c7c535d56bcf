# SPDX-License-Identifier: Apache-2.0
"""SG_IO's header, and what its results become; the kernel is a function here."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

import pytest

from tests.pr.client import parameters, reserve_in, reserve_out
from vhostblk.pr.sg import Sg
from vhostblk.reservations import sense
from vhostblk.reservations.layout import MAX_DATA, SG_IO, SG_IO_HDR


class Header(NamedTuple):
    """`struct sg_io_hdr`."""

    interface: int
    direction: int
    cdb_length: int
    sense_length: int
    vectors: int
    data_length: int
    data: int
    cdb: int
    sense: int
    timeout: int
    flags: int
    identifier: int
    user: int
    status: int
    masked_status: int
    msg_status: int
    sense_written: int
    host: int
    driver: int
    residue: int
    duration: int
    info: int


class Kernel:
    """Answers SG_IO as told, and keeps what it was asked."""

    def __init__(self, **results: int) -> None:
        self.results = results
        self.error = 0
        self.sense = b""
        self.data = b""
        self.asked: Header | None = None
        self.cdb = self.written = b""

    def ioctl(self, fd: int, request: int, memory: bytearray) -> int:
        assert (fd, request) == (9, SG_IO)
        header = Header(*SG_IO_HDR.unpack(memory))
        self.asked = header
        self.cdb = ctypes.string_at(header.cdb, header.cdb_length)
        if header.direction == -2:
            self.written = ctypes.string_at(header.data, header.data_length)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        ctypes.memmove(header.data, self.data, len(self.data))
        ctypes.memmove(header.sense, self.sense, len(self.sense))
        memory[:] = SG_IO_HDR.pack(*header._replace(**self.results))
        return 0


def test_the_structure_is_the_kernels() -> None:
    assert SG_IO_HDR.size == struct.calcsize("P") * 4 + 56


def test_a_command_in() -> None:
    kernel = Kernel(residue=MAX_DATA - 8)
    kernel.data = b"datadata and more"
    reply = Sg(30_000, kernel.ioctl).reserve(9, reserve_in(1), b"")
    assert reply == (0, bytes(96), b"datadata")
    assert kernel.asked is not None
    assert kernel.asked.interface == ord("S")
    assert (kernel.asked.direction, kernel.asked.data_length) == (-3, MAX_DATA)
    assert (kernel.asked.cdb_length, kernel.asked.sense_length) == (16, 96)
    assert (kernel.asked.timeout, kernel.asked.flags, kernel.asked.vectors) == (30_000, 0, 0)
    assert kernel.cdb == reserve_in(1)


def test_a_command_out() -> None:
    kernel = Kernel()
    reply = Sg(1000, kernel.ioctl).reserve(9, reserve_out(0), parameters(1, 2))
    assert reply == (0, bytes(96), b"")
    assert kernel.asked is not None
    assert (kernel.asked.direction, kernel.asked.data_length) == (-2, 24)
    assert (kernel.cdb, kernel.written) == (reserve_out(0), parameters(1, 2))


def test_one_client_never_gets_what_another_one_got() -> None:
    kernel = Kernel()
    sg = Sg(1000, kernel.ioctl)
    kernel.data, kernel.sense = b"secret" * 100, b"secret"
    sg.reserve(9, reserve_in(), b"")
    kernel.data, kernel.sense = b"", b""
    assert sg.reserve(9, reserve_in(), b"") == (0, bytes(96), bytes(MAX_DATA))
    sg.reserve(9, reserve_out(), b"secret" * 4)
    assert sg.reserve(9, reserve_in(), b"") == (0, bytes(96), bytes(MAX_DATA))


@pytest.mark.parametrize(
    ("residue", "length"), [(0, 8192), (8192, 0), (8193, 0), (1 << 30, 0), (-1, 8192)]
)
def test_a_residue_that_no_device_can_have(residue: int, length: int) -> None:
    reply = Sg(1000, Kernel(residue=residue).ioctl).reserve(9, reserve_in(), b"")
    assert len(reply.data) == length


@pytest.mark.parametrize("status", [2, 4, 8, 0x18, 0x28, 0x30, 0x40])
def test_a_status_of_the_device(status: int) -> None:
    kernel = Kernel(status=status)
    kernel.sense = b"sense"
    reply = Sg(1000, kernel.ioctl).reserve(9, reserve_in(), b"")
    assert reply == (status, b"sense".ljust(96, b"\0"), b"")


def test_no_failure_of_the_host_is_a_success() -> None:
    for host in range(1, 256):
        reply = Sg(1000, Kernel(host=host).ioctl).reserve(9, reserve_in(), b"")
        assert reply.status != 0, host
        assert reply.data == b""


def test_every_errno_is_a_failure() -> None:
    for number in errno.errorcode:
        kernel = Kernel()
        kernel.error = number
        assert Sg(1000, kernel.ioctl).reserve(9, reserve_in(), b"").status != 0


def test_fixed_format() -> None:
    encoded = sense.INVALID_OPCODE.encode()
    assert encoded.hex() == "700005000000000a00000000200000000000"
