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
#: Of the header: dxfer_direction, cmd_len, mx_sb_len, iovec_count, dxfer_len.
_ASKED = struct.Struct("@iBBHI")
_ASKED_OFFSET = 4
#: Of the header: status, host_status, driver_status, resid.
_RESULTS = struct.Struct("@B3xHHi")
_RESULTS_OFFSET = SG_IO_HDR.size - 24
_NO_DATA = bytes(MAX_DATA)
_NO_SENSE = bytes(SENSE_SIZE)


def failure(host_status: int, driver_status: int, sense: bytes) -> Reply | None:
    """Return the reply for a command that has failed below SCSI; None: it has not."""
    if host_status:
        return from_host_status(host_status)
    if driver_status & DRIVER_TIMEOUT:
        return Reply(BUSY, sense)
    return None


class Sg:
    """Memory for one command at a time; each thread has its own."""

    def __init__(self, timeout: int, ioctl: Ioctl = ioctl) -> None:
        """`timeout`: milliseconds that a command may take."""
        self._ioctl = ioctl
        memory = [ctypes.create_string_buffer(size) for size in (MAX_DATA, CDB_SIZE, SENSE_SIZE)]
        addresses = map(ctypes.addressof, memory)
        self._header = SG_IO_HDR.pack(_INTERFACE, *(0,) * 5, *addresses, timeout, *_UNSET)
        # Views keep the memory; to change it by them takes less time than a call of ctypes.
        self._data, self._cdb, self._sense = (memoryview(each).cast("B") for each in memory)

    def reserve(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send PERSISTENT RESERVE IN or OUT."""
        if cdb[0] == PERSISTENT_RESERVE_IN:
            # A driver that transfers less than it says must not show an earlier command's data.
            self._data[:] = _NO_DATA
            return self._send(fd, cdb, SG_DXFER_FROM_DEV, MAX_DATA)
        self._data[: len(parameters)] = parameters
        return self._send(fd, cdb, SG_DXFER_TO_DEV, len(parameters))

    def command(self, fd: int, cdb: bytes) -> Reply:
        """Send a command without data."""
        return self._send(fd, cdb, SG_DXFER_NONE, 0)

    def _send(self, fd: int, cdb: bytes, direction: int, length: int) -> Reply:
        self._sense[:] = _NO_SENSE
        self._cdb[: len(cdb)] = cdb
        header = bytearray(self._header)
        _ASKED.pack_into(header, _ASKED_OFFSET, direction, len(cdb), SENSE_SIZE, 0, length)
        try:
            self._ioctl(fd, SG_IO, header)
        except OSError as error:
            return from_errno(error.errno or 0)
        status, host, driver, residue = _RESULTS.unpack_from(header, _RESULTS_OFFSET)
        if reply := failure(host, driver, bytes(self._sense)):
            return reply
        data = b""
        if direction == SG_DXFER_FROM_DEV and status == GOOD:
            wanted = min(length - residue, length, data_length(cdb))
            data = bytes(self._data[: max(0, wanted)])
        return Reply(status, bytes(self._sense), data)
