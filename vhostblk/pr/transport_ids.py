# SPDX-License-Identifier: Apache-2.0
"""Transport IDs in a parameter list with SPEC_I_PT, as libmpathpersist takes them (SPC-4, 7.6.4).

The library's `struct transportid` has a byte each for format and protocol, and a union of 256
bytes: eight of a Fibre Channel port name or a SAS address, or the length and name of iSCSI.
"""

from __future__ import annotations

import struct

from vhostblk.errors import VhostblkError
from vhostblk.reservations.layout import PARAMETERS_SIZE

#: `struct transportid`.
SIZE = 2 + 256
#: The longest list that the library takes (MPATH_MX_TIDS).
MAX_IDS = 32

_LENGTH = struct.Struct(">I")
_NAME_LENGTH = struct.Struct(">H")
_FIXED_SIZE = 24
#: The library writes length and name into 256 bytes, and leaves out the name's first byte.
_LONGEST_NAME = 252

_FIBRE_CHANNEL = 0x00
_ISCSI_DEVICE = 0x05
_ISCSI_PORT = 0x45
_SAS = 0x06


class LengthError(VhostblkError):
    """The parameter list is too short."""


class ContentError(VhostblkError):
    """A transport ID is not valid, or of no kind that the library knows."""


def parse(parameters: bytes) -> list[bytes]:
    """Return the transport IDs behind the basic parameter list as `struct transportid`.

    Raises LengthError and ContentError.
    """
    rest = parameters[PARAMETERS_SIZE:]
    if not rest:
        return []
    if len(rest) < _LENGTH.size:
        raise LengthError("the parameter list ends within the length of the transport IDs")
    (length,) = _LENGTH.unpack_from(rest)
    rest = rest[_LENGTH.size :]
    if length > len(rest):
        raise ContentError("the transport IDs end behind the parameter list")
    rest = rest[:length]
    found = []
    while rest:
        size, identifier = _parse_one(rest)
        found.append(identifier.ljust(SIZE, b"\0"))
        rest = rest[size:]
    if len(found) > MAX_IDS:
        raise ContentError(f"{len(found)} transport IDs are more than {MAX_IDS}")
    return found


def _parse_one(rest: bytes) -> tuple[int, bytes]:
    """Return how many bytes the first ID takes, and the library's form of it."""
    kind = rest[0] & 0xCF
    head = bytes([kind & 0xC0, kind & 0x0F])
    if kind in (_FIBRE_CHANNEL, _SAS):
        if len(rest) < _FIXED_SIZE:
            raise ContentError("a transport ID is cut short")
        at = 8 if kind == _FIBRE_CHANNEL else 4
        return _FIXED_SIZE, head + rest[at : at + 8]
    if kind in (_ISCSI_DEVICE, _ISCSI_PORT):
        if len(rest) < 4:
            raise ContentError("a transport ID is cut short")
        (length,) = _NAME_LENGTH.unpack_from(rest, 2)
        name = rest[4 : 4 + length]
        if length > _LONGEST_NAME or length % 4 or len(name) < length or 0 not in name:
            raise ContentError("an iSCSI name is too long, not padded, or cut short")
        return 4 + length, head + rest[2 : 4 + length]
    raise ContentError(f"unknown kind of transport ID: {kind:#04x}")
