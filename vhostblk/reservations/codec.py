# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE IN and OUT as bytes: commands from their parts, data to their parts (SPC-4).

What a device answers is not trusted: data that are cut short, or say more than there is, raise
DataError.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vhostblk.errors import VhostblkError
from vhostblk.reservations.layout import (
    ALL_TG_PT,
    APTPL,
    CHECK_CONDITION,
    MAX_DATA,
    PARAMETERS,
    PARAMETERS_SIZE,
    PERSISTENT_RESERVE_IN,
    PERSISTENT_RESERVE_OUT,
    RESERVATION_CONFLICT,
    STATUS_NAMES,
)
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.reservations import (
    PrCapabilities,
    PrInAction,
    PrOutAction,
    PrRegistration,
    PrReservation,
    PrStatus,
    PrType,
)

if TYPE_CHECKING:
    from vhostblk.reservations.wire import Reply

#: Codes of types (SPC-4, table 66).
TYPE_CODES = {
    PrType.WRITE_EXCLUSIVE: 1,
    PrType.EXCLUSIVE_ACCESS: 3,
    PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: 5,
    PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: 6,
    PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS: 7,
    PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: 8,
}
_TYPES = {code: kind for kind, code in TYPE_CODES.items()}
_IN_ACTIONS = {action: code for code, action in enumerate(PrInAction)}
_OUT_ACTIONS = {action: code for code, action in enumerate(PrOutAction)}
_WITH_TYPE = {
    PrOutAction.RESERVE,
    PrOutAction.RELEASE,
    PrOutAction.PREEMPT,
    PrOutAction.PREEMPT_AND_ABORT,
}
_KEYS = (1 << 64) - 1

#: Operation code, service action, type, and at 7 the length of data.
_CDB = struct.Struct(">BBBxxxxHx6x")
#: Generation, additional length.
_HEAD = struct.Struct(">II")
_KEY = struct.Struct(">Q")
#: Key, scope and type.
_RESERVATION = struct.Struct(">Q4xxB2x")
#: Length, flags, type mask.
_CAPABILITIES = struct.Struct(">HBBBBxx")
#: Key, flags, scope and type, relative target port, length of the transport ID.
_REGISTRATION = struct.Struct(">Q4xBB4xHI")
_HOLDER = 0x01
_ALL_PORTS = 0x02
_MASK_VALID = 0x80


class DataError(VhostblkError):
    """A device's answer makes no sense."""


class CommandFailedError(VhostblkError):
    """A device has not done what it was told."""


def command_in(action: PrInAction) -> bytes:
    """Return the CDB of PERSISTENT RESERVE IN."""
    return _CDB.pack(PERSISTENT_RESERVE_IN, _IN_ACTIONS[action], 0, MAX_DATA)


def command_out(
    action: PrOutAction,
    key: int,
    service_action_key: int,
    kind: PrType | None,
    *,
    aptpl: bool = False,
    all_target_ports: bool = False,
) -> tuple[bytes, bytes]:
    """Return CDB and parameter list of PERSISTENT RESERVE OUT; raises CommandFailedError."""
    if kind is None and action in _WITH_TYPE:
        raise CommandFailedError(f"Parameter 'type' is missing for '{action.value}'")
    for name, each in (("key", key), ("service-action-key", service_action_key)):
        if not 0 <= each <= _KEYS:
            raise CommandFailedError(f"Parameter '{name}' expects a number of 64 bits, not {each}")
    code = TYPE_CODES[kind] if kind is not None else 0
    flags = (APTPL if aptpl else 0) | (ALL_TG_PT if all_target_ports else 0)
    keys = (each.to_bytes(8, "big") for each in (key, service_action_key))
    parameters = PARAMETERS.pack(*keys, bytes(4), flags, 0)
    return _CDB.pack(
        PERSISTENT_RESERVE_OUT, _OUT_ACTIONS[action], code, PARAMETERS_SIZE
    ), parameters


def is_unit_attention(reply: Reply) -> bool:
    """Whether a device has done nothing, because it had to tell something first."""
    return reply.status == CHECK_CONDITION and sense_of(reply)[0] == 0x6


def sense_of(reply: Reply) -> tuple[int, int, int]:
    """Return sense key, additional sense code and qualifier of sense data."""
    sense = reply.sense.ljust(18, b"\0")
    if sense[0] & 0x7F in (0x72, 0x73):  # descriptor format
        return sense[1] & 0x0F, sense[2], sense[3]
    return sense[2] & 0x0F, sense[12], sense[13]


def describe_failure(reply: Reply) -> str:
    """Say why a command failed."""
    if reply.status == RESERVATION_CONFLICT:
        return "reservation conflict"
    if reply.status != CHECK_CONDITION:
        return STATUS_NAMES.get(reply.status, f"status {reply.status:#04x}")
    key, code, qualifier = sense_of(reply)
    return f"check condition, sense {key:x}/{code:02x}/{qualifier:02x}"


def decode_in(action: PrInAction, data: bytes) -> PrStatus:
    """Return what a device has answered; raises DataError."""
    try:
        if action is PrInAction.REPORT_CAPABILITIES:
            return PrStatus(capabilities=_capabilities(data))
        generation, length = _HEAD.unpack_from(data)
        rest = data[_HEAD.size : _HEAD.size + length]
        if action is PrInAction.READ_KEYS:
            if len(rest) < length:  # whoever fences by the list would take the others for absent
                raise DataError(
                    f"the device has {length // _KEY.size} keys, and {len(rest) // _KEY.size} fit "
                    "in an answer"
                )
            keys = [key for (key,) in _KEY.iter_unpack(rest)]
            return PrStatus(generation=generation, keys=keys)
        if action is PrInAction.READ_RESERVATION:
            return PrStatus(generation=generation, reservation=_reservation(rest))
        return PrStatus(generation=generation, registrations=_registrations(rest))
    except struct.error:
        raise DataError("the answer is cut short") from None


def _type(code: int) -> PrType:
    if code & 0x0F not in _TYPES:
        raise DataError(f"unknown type of reservation: {code & 0x0F:#x}")
    return _TYPES[code & 0x0F]


def _reservation(rest: bytes) -> PrReservation | UnsetType:
    if not rest:
        return UNSET
    key, kind = _RESERVATION.unpack_from(rest)
    return PrReservation(key=key, type=_type(kind))


def _capabilities(data: bytes) -> PrCapabilities:
    _, flags, more, first, second = _CAPABILITIES.unpack_from(data)
    known = first | second << 8
    return PrCapabilities(
        aptpl=bool(flags & 0x01),
        all_target_ports=bool(flags & 0x04),
        specify_initiator_ports=bool(flags & 0x08),
        aptpl_active=bool(more & 0x01),
        types=[kind for code, kind in _TYPES.items() if known & 1 << code]
        if more & _MASK_VALID
        else UNSET,
    )


def _registrations(rest: bytes) -> list[PrRegistration]:
    found = []
    while rest:
        key, flags, kind, port, length = _REGISTRATION.unpack_from(rest)
        identifier = rest[_REGISTRATION.size : _REGISTRATION.size + length]
        if len(identifier) < length:
            raise DataError("the answer is cut short")
        found.append(
            PrRegistration(
                key=key,
                type=_type(kind) if flags & _HOLDER else UNSET,
                all_target_ports=bool(flags & _ALL_PORTS),
                relative_target_port=port,
                transport_id=identifier.hex(),
            )
        )
        rest = rest[_REGISTRATION.size + length :]
    return found
