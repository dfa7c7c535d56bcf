# SPDX-License-Identifier: Apache-2.0
"""Multipath maps, through libmpathpersist.

A reservation of a multipath map has to be made on all its paths, and again on paths that come
later. libmpathpersist does the former and tells multipathd, which does the latter. SG_IO to the map
would reach one path only.

The library belongs to the package multipath-tools, and is opened where it is installed. It wants
`reservation_key` in multipath.conf(5) (a key, or `file`). Its calls take one lock; each sends the
command to all paths, in threads of its own.

It returns what it has understood of sense data, not the sense data (`_REPLIES`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any

from vhostblk.errors import VhostblkError, reason
from vhostblk.pr import transport_ids
from vhostblk.reservations import sense
from vhostblk.reservations.layout import (
    CHECK_CONDITION,
    GOOD,
    LENGTH,
    MAX_DATA,
    PARAMETERS,
    PARAMETERS_SIZE,
    PERSISTENT_RESERVE_IN,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER_AND_IGNORE,
    REPORT_CAPABILITIES,
    RESERVATION_CONFLICT,
    SCSI_DISK_MAJORS,
    SERVICE_ACTION_MASK,
    TEST_UNIT_READY,
)
from vhostblk.reservations.wire import Reply

if TYPE_CHECKING:
    from vhostblk.pr.sg import Sg
    from vhostblk.reservations.wire import Request

LIBRARY = "libmpathpersist.so.0"
#: What device mapper's names for multipath maps begin with.
_UUID_PREFIX = "mpath-"
_BLOCK_DEVICES = "/sys/dev/block"
#: Where libmpathpersist finds device mapper. It ends the process where that can't be opened.
CONTROL = "/dev/mapper/control"

_SUCCESS = 0
_NOT_READY = 2
_MEDIUM_ERROR = 3
_HARDWARE_ERROR = 4
_ILLEGAL_REQUEST = 5
_UNIT_ATTENTION = 6
_INVALID_OPERATION = 7
_ABORTED_COMMAND = 8
_NO_SENSE = 9
_RESERVATION_CONFLICT = 11

_REPLIES = {
    _SUCCESS: Reply(GOOD),
    _RESERVATION_CONFLICT: Reply(RESERVATION_CONFLICT),
    _ILLEGAL_REQUEST: sense.check_condition(sense.INVALID_PARAMETER),
    # Which one it was is lost; this one makes the initiator look at everything.
    _UNIT_ATTENTION: sense.check_condition(sense.BUS_RESET),
    _INVALID_OPERATION: sense.check_condition(sense.INVALID_OPCODE),
    _NO_SENSE: sense.check_condition(sense.NO_SENSE),
}
#: What is said where TEST UNIT READY doesn't tell more.
_UNCLEAR = {
    _NOT_READY: sense.NOT_READY,
    _MEDIUM_ERROR: sense.READ_ERROR,
    _HARDWARE_ERROR: sense.TARGET_FAILURE,
    _ABORTED_COMMAND: sense.IO_ERROR,
}


class MultipathError(VhostblkError):
    """The library is not there, or does not work."""


class _ReadDescriptor(ctypes.Structure):
    """`struct prin_readdescr`, and with its size that of `struct prin_resp`, or more."""

    _fields_ = (
        ("generation", ctypes.c_uint32),
        ("additional_length", ctypes.c_uint32),
        # The library's other members of the union are longer by some pointers.
        ("list", ctypes.c_uint8 * (MAX_DATA + 64)),
    )


class _Capabilities(ctypes.Structure):
    """`struct prin_capdescr`."""

    _fields_ = (
        ("length", ctypes.c_uint16),
        ("flags", ctypes.c_uint8 * 2),
        ("type_mask", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
    )


class _Parameters(ctypes.Structure):
    """`struct prout_param_descriptor`, with room for the longest list."""

    _fields_ = (
        ("key", ctypes.c_uint8 * 8),
        ("service_key", ctypes.c_uint8 * 8),
        ("obsolete", ctypes.c_uint32),
        ("flags", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("obsolete1", ctypes.c_uint16),
        ("private", ctypes.c_uint8 * MAX_DATA),
        ("count", ctypes.c_uint32),
        ("ids", ctypes.c_void_p * transport_ids.MAX_IDS),
    )


def is_multipath(device: int) -> bool:
    """Whether a block device, by its number, is a multipath map."""
    if os.major(device) in SCSI_DISK_MAJORS:
        return False
    name = f"{_BLOCK_DEVICES}/{os.major(device)}:{os.minor(device)}/dm/uuid"
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # not a device of device mapper
    try:
        return os.read(fd, 256).startswith(_UUID_PREFIX.encode())
    finally:
        os.close(fd)


class Multipath:
    """The library, set up."""

    def __init__(self, library: str = LIBRARY, *, verbose: int = 0, noisy: bool = False) -> None:
        """Open and set up the library, which reads its configuration; raises MultipathError."""
        try:
            self._library: Any = ctypes.CDLL(library)
            calls = ("libmpathpersist_init", "libmpathpersist_exit",
                     "mpath_persistent_reserve_in", "mpath_persistent_reserve_out")  # fmt: skip
            for name in calls:
                getattr(self._library, name).restype = ctypes.c_int
            # How much data the library asks devices for.
            ctypes.c_uint.in_dll(self._library, "mpath_mx_alloc_len").value = MAX_DATA
        except (OSError, AttributeError, ValueError) as error:
            raise MultipathError(reason(error)) from error
        self._verbose = verbose
        self._noisy = int(noisy)
        self._lock = threading.Lock()
        if self._library.libmpathpersist_init():
            raise MultipathError(f"{library}: can't be initialized; is multipath.conf valid?")

    def reserve(self, request: Request, sg: Sg) -> Reply:
        """Carry out a command on a map; `sg` is for what the library doesn't tell.

        Raises OSError where device mapper can't be reached.
        """
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
        if request.cdb[0] == PERSISTENT_RESERVE_IN:
            return self._reserve_in(request, sg)
        return self._reserve_out(request, sg)

    def close(self) -> None:
        """Free what the library has."""
        self._library.libmpathpersist_exit()

    def _reserve_in(self, request: Request, sg: Sg) -> Reply:
        action = request.cdb[1] & SERVICE_ACTION_MASK
        if action not in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES):
            return sense.check_condition(sense.INVALID_FIELD)
        response = _ReadDescriptor()
        with self._lock:
            result = self._library.mpath_persistent_reserve_in(
                request.fd, action, ctypes.byref(response), self._noisy, self._verbose
            )
        if result != _SUCCESS:
            return self._failed(request, result, sg)
        data = _capabilities(response) if action == REPORT_CAPABILITIES else _keys(response)
        return Reply(GOOD, b"", data.ljust(MAX_DATA, b"\0"))

    def _reserve_out(self, request: Request, sg: Sg) -> Reply:
        if len(request.parameters) < PARAMETERS_SIZE:
            return sense.check_condition(sense.INVALID_PARAMETER_LENGTH)
        action = request.cdb[1] & SERVICE_ACTION_MASK
        if action > REGISTER_AND_IGNORE:
            return sense.check_condition(sense.INVALID_FIELD)
        try:
            identifiers = transport_ids.parse(request.parameters)
        except transport_ids.LengthError:
            return sense.check_condition(sense.INVALID_PARAMETER_LENGTH)
        except transport_ids.ContentError:
            return sense.check_condition(sense.INVALID_PARAMETER)
        buffers = [ctypes.create_string_buffer(each, len(each)) for each in identifiers]
        parameters = _parameters(request.parameters, buffers)
        scope, kind = request.cdb[2] >> 4, request.cdb[2] & 0x0F
        with self._lock:
            result = self._library.mpath_persistent_reserve_out(
                request.fd, action, scope, kind, ctypes.byref(parameters), self._noisy,
                self._verbose,
            )  # fmt: skip
        return _REPLIES[_SUCCESS] if result == _SUCCESS else self._failed(request, result, sg)

    def _failed(self, request: Request, result: int, sg: Sg) -> Reply:
        if result in _REPLIES:
            return _REPLIES[result]
        if result not in _UNCLEAR:
            return sense.check_condition(sense.LUN_COMMUNICATION_FAILURE)
        reply = sg.command(request.fd, bytes([TEST_UNIT_READY, 0, 0, 0, 0, 0]))
        if reply.status == GOOD:
            return sense.check_condition(_UNCLEAR[result])
        return Reply(reply.status, reply.sense if reply.status == CHECK_CONDITION else b"")


def _keys(response: _ReadDescriptor) -> bytes:
    """Return the data of READ KEYS and READ RESERVATION."""
    length = response.additional_length
    head = response.generation.to_bytes(4, "big") + length.to_bytes(4, "big")
    data: bytes = head + bytes(response.list)[:length]
    return data[:MAX_DATA]


def _capabilities(response: _ReadDescriptor) -> bytes:
    """Return the data of REPORT CAPABILITIES."""
    found = _Capabilities.from_buffer(response)
    return LENGTH.pack(found.length) + bytes(found.flags) + LENGTH.pack(found.type_mask)


def _parameters(given: bytes, identifiers: list[ctypes.Array[ctypes.c_char]]) -> _Parameters:
    key, service_key, _, flags, _ = PARAMETERS.unpack_from(given)
    parameters = _Parameters(flags=flags, count=len(identifiers))
    parameters.key[:] = key
    parameters.service_key[:] = service_key
    for number, buffer in enumerate(identifiers):
        parameters.ids[number] = ctypes.addressof(buffer)
    return parameters
