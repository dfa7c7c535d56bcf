# SPDX-License-Identifier: Apache-2.0
"""Sense data, and what failures become in SCSI.

Statuses and codes are those of QEMU's helper; `from_host_status` names the exception.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from vhostblk.reservations.layout import (
    BUSY,
    CHECK_CONDITION,
    GOOD,
    RESERVATION_CONFLICT,
    TASK_SET_FULL,
)
from vhostblk.reservations.wire import Reply


class Sense(NamedTuple):
    """Sense key, additional sense code and its qualifier (SPC-4, 4.5)."""

    key: int
    code: int
    qualifier: int

    def encode(self) -> bytes:
        """Return sense data in fixed format."""
        return bytes([0x70, 0, self.key, *bytes(4), 10, *bytes(4), self.code, self.qualifier,
                      *bytes(4)])  # fmt: skip


NO_SENSE = Sense(0x0, 0x00, 0x00)
NOT_READY = Sense(0x2, 0x04, 0x00)
NO_MEDIUM = Sense(0x2, 0x3A, 0x00)
READ_ERROR = Sense(0x3, 0x11, 0x00)
TARGET_FAILURE = Sense(0x4, 0x44, 0x00)
INVALID_PARAMETER_LENGTH = Sense(0x5, 0x1A, 0x00)
INVALID_OPCODE = Sense(0x5, 0x20, 0x00)
INVALID_FIELD = Sense(0x5, 0x24, 0x00)
INVALID_PARAMETER = Sense(0x5, 0x26, 0x00)
RESET = Sense(0x6, 0x29, 0x00)
BUS_RESET = Sense(0x6, 0x29, 0x02)
SPACE_ALLOCATION_FAILED = Sense(0x7, 0x27, 0x07)
IO_ERROR = Sense(0xB, 0x00, 0x06)
LUN_NOT_RESPONDING = Sense(0xB, 0x05, 0x00)
LUN_COMMUNICATION_FAILURE = Sense(0xB, 0x08, 0x00)
NEXUS_LOSS = Sense(0xB, 0x29, 0x07)
COMMAND_TIMEOUT = Sense(0xB, 0x2E, 0x02)
COMMAND_ABORTED = Sense(0xB, 0x2F, 0x02)

_ERRNO: dict[int, int | Sense] = {
    errno.EDOM: TASK_SET_FULL,
    errno.EBADE: RESERVATION_CONFLICT,
    errno.ENODATA: READ_ERROR,
    errno.EREMOTEIO: TARGET_FAILURE,
    errno.ENOMEM: TARGET_FAILURE,
    errno.ENOMEDIUM: NO_MEDIUM,
    errno.EINVAL: INVALID_FIELD,
    errno.ENOSPC: SPACE_ALLOCATION_FAILED,
}

#: By `host_status` (<scsi/scsi_status.h>, enum scsi_host_status).
_HOST: dict[int, int | Sense] = {
    0x01: LUN_NOT_RESPONDING,  # DID_NO_CONNECT
    0x02: BUSY,  # DID_BUS_BUSY
    0x03: COMMAND_TIMEOUT,  # DID_TIME_OUT
    0x04: LUN_COMMUNICATION_FAILURE,  # DID_BAD_TARGET
    0x05: COMMAND_ABORTED,  # DID_ABORT
    0x08: RESET,  # DID_RESET
    0x0E: NEXUS_LOSS,  # DID_TRANSPORT_DISRUPTED
    0x10: TARGET_FAILURE,  # DID_TARGET_FAILURE
    0x11: RESERVATION_CONFLICT,  # DID_NEXUS_FAILURE
    0x12: SPACE_ALLOCATION_FAILED,  # DID_ALLOC_FAILURE
    0x13: READ_ERROR,  # DID_MEDIUM_ERROR
}


def check_condition(sense: Sense) -> Reply:
    """Return the reply that carries sense data."""
    return Reply(CHECK_CONDITION, sense.encode())


def from_errno(number: int) -> Reply:
    """Return the reply for a system call that failed."""
    return _reply(_ERRNO.get(number, IO_ERROR))


def from_host_status(status: int) -> Reply:
    """Return the reply for a command that the host adapter could not carry out.

    QEMU's helper takes what is not in the table, DID_ERROR for one, for success. Then the guest
    believes in a reservation that there may not be.
    """
    return _reply(_HOST.get(status, IO_ERROR))


def _reply(meaning: int | Sense) -> Reply:
    return Reply(meaning) if isinstance(meaning, int) else check_condition(meaning)


assert GOOD not in (*_ERRNO.values(), *_HOST.values())
