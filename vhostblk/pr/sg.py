# SPDX-License-Identifier: Apache-2.0
"""SG_IO: one SCSI command to the device behind a descriptor."""

from __future__ import annotations

import ctypes
import fcntl
import struct
from typing import TYPE_CHECKING

from vhostblk.reservations.layout import (
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
from vhostblk.reservations.sense import from_errno, from_host_status
from vhostblk.reservations.wire import Reply, data_length

if TYPE_CHECKING:
    from collections.abc import Callable

    #: ioctl(2) with memory that the kernel reads and writes; raises OSError.
    Ioctl = Callable[[int, int, bytearray], object]


def ioctl(fd: int, request: int, memory: bytearray) -> object:
    """Make the system call; raises OSError."""
    return fcntl.ioctl(fd, request, memory, True)


_INTERFACE = ord("S")
#: Of the header: flags, identifiers and results.
_UNSET = (0,) * 12
#: Of the header: status, host_status, driver_status, resid.
_RESULTS = struct.Struct("@B3xHHi")
_RESULTS_OFFSET = SG_IO_HDR.size - 24


class Sg:
    """Memory for one command at a time; each thread has its own."""

    def __init__(self, timeout: int, ioctl: Ioctl = ioctl) -> None:
        """`timeout`: milliseconds that a command may take."""
        self._timeout = timeout
        self._ioctl = ioctl
        self._cdb = ctypes.create_string_buffer(CDB_SIZE)
        self._sense = ctypes.create_string_buffer(SENSE_SIZE)
        self._data = ctypes.create_string_buffer(MAX_DATA)
        self._addresses = tuple(map(ctypes.addressof, (self._data, self._cdb, self._sense)))

    def reserve(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send PERSISTENT RESERVE IN or OUT."""
        if cdb[0] == PERSISTENT_RESERVE_IN:
            # A driver that transfers less than it says must not show an earlier command's data.
            ctypes.memset(self._data, 0, MAX_DATA)
            return self._send(fd, cdb, SG_DXFER_FROM_DEV, MAX_DATA)
        ctypes.memmove(self._data, parameters, len(parameters))
        return self._send(fd, cdb, SG_DXFER_TO_DEV, len(parameters))

    def command(self, fd: int, cdb: bytes) -> Reply:
        """Send a command without data."""
        return self._send(fd, cdb, SG_DXFER_NONE, 0)

    def _send(self, fd: int, cdb: bytes, direction: int, length: int) -> Reply:
        ctypes.memset(self._sense, 0, SENSE_SIZE)
        ctypes.memmove(self._cdb, cdb, len(cdb))
        header = bytearray(
            SG_IO_HDR.pack(
                _INTERFACE, direction, len(cdb), SENSE_SIZE, 0, length, *self._addresses,
                self._timeout, *_UNSET,
            )
        )  # fmt: skip
        try:
            self._ioctl(fd, SG_IO, header)
        except OSError as error:
            return from_errno(error.errno or 0)
        status, host, driver, residue = _RESULTS.unpack_from(header, _RESULTS_OFFSET)
        if host:
            return from_host_status(host)
        if driver & DRIVER_TIMEOUT:
            return Reply(BUSY, self._sense.raw)
        data = b""
        if direction == SG_DXFER_FROM_DEV and status == GOOD:
            wanted = min(length - residue, length, data_length(cdb))
            data = ctypes.string_at(self._data, max(0, wanted))
        return Reply(status, self._sense.raw, data)
