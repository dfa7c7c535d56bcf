# SPDX-License-Identifier: Apache-2.0
"""A manager without helper: the kernel's own commands, `ioctl(2)` with <linux/pr.h>.

They need no privilege but a descriptor that is open for writing (for reading, to read), and work
on SCSI disks, NVMe name spaces and multipath maps alike. They tell less: no sense data, no
capabilities, no full status. Keys and the reservation can be read since Linux 6.19. The kernel sets
APTPL wherever it registers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from typing import TYPE_CHECKING

from vhostblk.reservations import sense
from vhostblk.reservations.layout import (
    APTPL,
    CHECK_CONDITION,
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
from vhostblk.threads import in_thread

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
_ONE_KEY_CALLS = {RESERVE: IOC_PR_RESERVE, RELEASE: IOC_PR_RELEASE}
_TWO_KEY_CALLS = {PREEMPT: IOC_PR_PREEMPT, PREEMPT_AND_ABORT: IOC_PR_PREEMPT_ABORT}
#: The kernel doesn't tell why a device refuses. It may just have had to tell of what another
#: initiator did; then it does the next one.
_ATTEMPTS = 4
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
        return await in_thread(lambda: self.execute(fd, cdb, parameters))

    def execute(self, fd: int, cdb: bytes, parameters: bytes) -> Reply:
        """Send a command, and wait for it."""
        try:
            for _ in range(_ATTEMPTS):
                status, reply = self._attempt(fd, cdb, parameters)
                if status & _STATUS_MASK != CHECK_CONDITION:
                    break
            return reply
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return sense.check_condition(sense.INVALID_OPCODE)
            return sense.from_errno(error.errno or 0)

    def _attempt(self, fd: int, cdb: bytes, parameters: bytes) -> tuple[int, Reply]:
        """Make a call, if there is one; return its result, and what it means."""
        action = cdb[1] & SERVICE_ACTION_MASK
        if cdb[0] == PERSISTENT_RESERVE_IN:
            return self._read(fd, action, data_length(cdb))
        call = _call(action, cdb[2], parameters)
        if isinstance(call, Reply):
            return GOOD, call
        request, memory = call
        status = self._ioctl(fd, request, bytearray(memory))
        return status, _meaning(status)

    def _read(self, fd: int, action: int, length: int) -> tuple[int, Reply]:
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
            return GOOD, sense.check_condition(sense.INVALID_FIELD)
        return status, _meaning(status) if status else Reply(GOOD, b"", data[:length])


def _call(action: int, scope_and_type: int, parameters: bytes) -> tuple[int, bytes] | Reply:
    """Return the call for a PERSISTENT RESERVE OUT, or the reply where there is none."""
    if len(parameters) != PARAMETERS_SIZE:
        return sense.check_condition(sense.INVALID_PARAMETER_LENGTH)
    first, second, _, flags, _ = PARAMETERS.unpack(parameters)
    if flags & ~APTPL:
        return sense.check_condition(sense.INVALID_PARAMETER)
    key, service_key = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    if action == REGISTER:
        return IOC_PR_REGISTER, _TWO_KEYS.pack(key, service_key, 0, 0)
    if action == REGISTER_AND_IGNORE:
        return IOC_PR_REGISTER, _TWO_KEYS.pack(0, service_key, _IGNORE_KEY, 0)
    if action == CLEAR:
        return IOC_PR_CLEAR, _ONE_KEY.pack(key, 0, 0)
    kind = KERNEL_TYPES.get(scope_and_type, 0)
    if kind and action in _ONE_KEY_CALLS:
        return _ONE_KEY_CALLS[action], _ONE_KEY.pack(key, kind, 0)
    if kind and action in _TWO_KEY_CALLS:
        return _TWO_KEY_CALLS[action], _TWO_KEYS.pack(key, service_key, kind, 0)
    return sense.check_condition(sense.INVALID_FIELD)


def _meaning(status: int) -> Reply:
    """Return the reply for a result: `enum pr_status`, or a SCSI or NVMe status."""
    if not status:
        return Reply(GOOD)
    if status & _STATUS_MASK == RESERVATION_CONFLICT:
        return Reply(RESERVATION_CONFLICT)
    return sense.check_condition(sense.IO_ERROR)
