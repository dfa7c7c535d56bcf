# SPDX-License-Identifier: Apache-2.0
"""SG_IO: one SCSI command to the device behind a descriptor."""

from __future__ import annotations

import ctypes
import fcntl
from typing import TYPE_CHECKING

from vhostblk.pr.layout import (
    BUSY,
    CDB_SIZE,
    DRIVER_TIMEOUT,
    GOOD,
    MAX_DATA,
    PERSISTENT_RESERVE_IN,
    SENSE_SIZE,
    SG_DXFER_FROM_DEV,
    SG_DXFER_NONE,
    SG_DXFER_TO_DEV,
    SG_IO,
    SG_IO_HDR,
)
from vhostblk.pr.sense import from_errno, from_host_status
from vhostblk.pr.wire import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    #: ioctl(2) with memory that the kernel reads and writes; raises OSError.
    Ioctl = Callable[[int, int, bytearray], object]


def ioctl(fd: int, request: int, memory: bytearray) -> object:
    """Make the system call; raises OSError."""
    return fcntl.ioctl(fd, request, memory, True)


#: Of the header: flags, identifiers and results.
_UNSET = (0,) * 12


class Sg:
    """Memory for one command at a time; each thread has its own."""

    def __init__(self, timeout: int, ioctl: Ioctl = ioctl) -> None:
        """`timeout`: milliseconds that a command may take."""
        self._timeout = timeout
        self._ioctl = ioctl
        self._cdb = ctypes.create_string_buffer(CDB_SIZE)
        self._sense = ctypes.create_string_buffer(SENSE_SIZE)
        self._data = ctypes.create_string_buffer(MAX_DATA)

    def reserve(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send PERSISTENT RESERVE IN or OUT."""
        if cdb[0] == PERSISTENT_RESERVE_IN:
            return self._send(fd, cdb, SG_DXFER_FROM_DEV, MAX_DATA)
        ctypes.memmove(self._data, parameters, len(parameters))
        return self._send(fd, cdb, SG_DXFER_TO_DEV, len(parameters))

    def command(self, fd: int, cdb: bytes) -> Reply:
        """Send a command without data."""
        return self._send(fd, cdb, SG_DXFER_NONE, 0)

    def _send(self, fd: int, cdb: bytes, direction: int, length: int) -> Reply:
        ctypes.memset(self._sense, 0, SENSE_SIZE)
        if direction == SG_DXFER_FROM_DEV:
            # A driver that transfers less than it says must not show an earlier command's data.
            ctypes.memset(self._data, 0, length)
        self._cdb.raw = cdb.ljust(CDB_SIZE, b"\0")
        addresses = map(ctypes.addressof, (self._data, self._cdb, self._sense))
        described = (direction, len(cdb), SENSE_SIZE, 0, length, *addresses, self._timeout)
        header = bytearray(SG_IO_HDR.pack(ord("S"), *described, *_UNSET))
        try:
            self._ioctl(fd, SG_IO, header)
        except OSError as error:
            return from_errno(error.errno or 0)
        *_, status, _, _, _, host, driver, residue, _, _ = SG_IO_HDR.unpack(header)
        if host:
            return from_host_status(host)
        if driver & DRIVER_TIMEOUT:
            return Reply(BUSY, self._sense.raw)
        data = b""
        if direction == SG_DXFER_FROM_DEV and status == GOOD:
            data = self._data.raw[: max(0, min(length - residue, length))]
        return Reply(status, self._sense.raw, data)
