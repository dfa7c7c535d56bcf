# SPDX-License-Identifier: Apache-2.0
"""A manager without helper: the kernel's own commands, `ioctl(2)` with <linux/pr.h>.

They need no privilege but a descriptor that is open for writing (for reading, to read), and work
on SCSI disks, NVMe name spaces and multipath maps alike. They tell less: no sense data, no
capabilities, no full status. Keys and the reservation can be read since Linux 6.19. The kernel sets
APTPL wherever it registers.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import struct
from typing import TYPE_CHECKING

from vhostblk.reservations import sense
from vhostblk.reservations.layout import (
    APTPL,
    CLEAR,
    GOOD,
    MAX_DATA,
    PARAMETERS,
    PARAMETERS_SIZE,
    PERSISTENT_RESERVE_IN,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVATION_CONFLICT,
    RESERVE,
    SERVICE_ACTION_MASK,
)
from vhostblk.reservations.manager import Manager
from vhostblk.reservations.wire import Reply, data_length

if TYPE_CHECKING:
    from collections.abc import Callable

    #: ioctl(2) with memory that the kernel reads and writes; returns its value, raises OSError.
    Ioctl = Callable[[int, int, bytearray], int]

# ioctl numbers, from <linux/pr.h>: direction, size of the argument, 'p', number.
IOC_PR_REGISTER = 0x401870C8
IOC_PR_RESERVE = 0x401070C9
IOC_PR_RELEASE = 0x401070CA
IOC_PR_PREEMPT = 0x401870CB
IOC_PR_PREEMPT_ABORT = 0x401870CC
IOC_PR_CLEAR = 0x401070CD
IOC_PR_READ_KEYS = 0xC01070CE
IOC_PR_READ_RESERVATION = 0x801070CF

#: `struct pr_registration`: old key, new key, flags, padding. `struct pr_preempt`: old key, new
#: key, type, flags.
_TWO_KEYS = struct.Struct("=QQII")
#: `struct pr_reservation`: key, type, flags. `struct pr_clear`: key, flags, padding.
_ONE_KEY = struct.Struct("=QII")
#: `struct pr_keys`: generation, number of keys, address of the keys.
_READ_KEYS = struct.Struct("=IIQ")
#: `struct pr_read_reservation`: key, generation, type.
_READ_RESERVATION = struct.Struct("=QII")
_IGNORE_KEY = 1
_KEY_SIZE = 8
_MOST_KEYS = (MAX_DATA - 8) // _KEY_SIZE

#: `enum pr_type` by SCSI's codes.
KERNEL_TYPES = {1: 1, 3: 2, 5: 3, 6: 4, 7: 5, 8: 6}
_SCSI_TYPES = {kernel: scsi for scsi, kernel in KERNEL_TYPES.items()}
#: `enum pr_status`: what paths of a multipath map came to is above the byte.
_STATUS_MASK = 0xFF


def ioctl(fd: int, request: int, memory: bytearray) -> int:
    """Make the system call."""
    return int(fcntl.ioctl(fd, request, memory, True))


class KernelManager(Manager):
    """Sends commands by the kernel."""

    def __init__(self, ioctl: Ioctl = ioctl) -> None:
        super().__init__()
        self._ioctl = ioctl

    async def run(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send a command, on a thread: devices take their time."""
        return await asyncio.to_thread(self.execute, fd, cdb, parameters)

    def execute(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send a command, and wait for it."""
        action = cdb[1] & SERVICE_ACTION_MASK
        try:
            if cdb[0] == PERSISTENT_RESERVE_IN:
                return self._read(fd, action, data_length(cdb))
            return self._write(fd, action, cdb[2], parameters)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return sense.check_condition(sense.INVALID_OPCODE)
            return sense.from_errno(error.errno or 0)

    def _read(self, fd: int, action: int, length: int) -> Reply:
        if action == READ_KEYS:
            keys = (ctypes.c_uint64 * _MOST_KEYS)()
            memory = bytearray(_READ_KEYS.pack(0, _MOST_KEYS, ctypes.addressof(keys)))
            status = self._ioctl(fd, IOC_PR_READ_KEYS, memory)
            generation, count, _ = _READ_KEYS.unpack(memory)
            found = b"".join(key.to_bytes(8, "big") for key in keys[: min(count, _MOST_KEYS)])
            # As a device does, tell of all keys, though not all may fit.
            data = struct.pack(">II", generation, count * _KEY_SIZE) + found
        elif action == READ_RESERVATION:
            memory = bytearray(_READ_RESERVATION.size)
            status = self._ioctl(fd, IOC_PR_READ_RESERVATION, memory)
            key, generation, kind = _READ_RESERVATION.unpack(memory)
            data = struct.pack(">II", generation, 0)
            if kind:
                scsi = _SCSI_TYPES.get(kind, 0)
                data = struct.pack(">IIQ4xxB2x", generation, 16, key, scsi)
        else:
            return sense.check_condition(sense.INVALID_FIELD)
        if status:
            return _failed(status)
        return Reply(GOOD, b"", data[:length])

    def _write(self, fd: int, action: int, scope_and_type: int, parameters: bytes) -> Reply:
        if len(parameters) != PARAMETERS_SIZE:
            return sense.check_condition(sense.INVALID_PARAMETER_LENGTH)
        first, second, _, flags, _ = PARAMETERS.unpack(parameters)
        key, service_key = int.from_bytes(first, "big"), int.from_bytes(second, "big")
        kind = KERNEL_TYPES.get(scope_and_type, 0)
        if flags & ~APTPL:
            return sense.check_condition(sense.INVALID_PARAMETER)
        if action in (RESERVE, RELEASE, PREEMPT, PREEMPT_AND_ABORT) and not kind:
            return sense.check_condition(sense.INVALID_FIELD)
        if action in (REGISTER, REGISTER_AND_IGNORE):
            ignores = _IGNORE_KEY if action == REGISTER_AND_IGNORE else 0
            old = 0 if ignores else key
            request, memory = IOC_PR_REGISTER, _TWO_KEYS.pack(old, service_key, ignores, 0)
        elif action in (RESERVE, RELEASE):
            request = IOC_PR_RESERVE if action == RESERVE else IOC_PR_RELEASE
            memory = _ONE_KEY.pack(key, kind, 0)
        elif action == CLEAR:
            request, memory = IOC_PR_CLEAR, _ONE_KEY.pack(key, 0, 0)
        elif action in (PREEMPT, PREEMPT_AND_ABORT):
            request = IOC_PR_PREEMPT if action == PREEMPT else IOC_PR_PREEMPT_ABORT
            memory = _TWO_KEYS.pack(key, service_key, kind, 0)
        else:
            return sense.check_condition(sense.INVALID_FIELD)
        status = self._ioctl(fd, request, bytearray(memory))
        return _failed(status) if status else Reply(GOOD)


def _failed(status: int) -> Reply:
    """Return the reply for a positive result: `enum pr_status`, or a SCSI or NVMe status."""
    if status & _STATUS_MASK == RESERVATION_CONFLICT:
        return Reply(RESERVATION_CONFLICT)
    return sense.check_condition(sense.IO_ERROR)
