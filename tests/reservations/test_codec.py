# SPDX-License-Identifier: Apache-2.0
"""Commands as bytes, and what devices answer."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.reservations import codec
from vhostblk.reservations.codec import CommandFailedError, DataError
from vhostblk.reservations.sense import INVALID_FIELD, RESET, check_condition
from vhostblk.reservations.wire import Reply
from vhostblk.schema.base import UNSET
from vhostblk.schema.reservations import PrInAction, PrOutAction, PrReservation, PrType

KEY = 0x1122334455667788


@pytest.mark.parametrize(("action", "code"), list(zip(PrInAction, range(4), strict=True)))
def test_reading(action: PrInAction, code: int) -> None:
    assert codec.command_in(action).hex() == f"5e{code:02x}0000000000200000000000000000"


@pytest.mark.parametrize(("action", "code"), list(zip(PrOutAction, range(7), strict=True)))
def test_changing(action: PrOutAction, code: int) -> None:
    kind = PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
    cdb, parameters = codec.command_out(action, KEY, 1, kind, aptpl=True, all_target_ports=True)
    assert cdb.hex() == f"5f{code:02x}0800000000001800000000000000"
    assert parameters.hex() == "11223344556677880000000000000001" + "00000000" + "05000000"


def test_keys_are_of_64_bits() -> None:
    _, parameters = codec.command_out(PrOutAction.REGISTER, (1 << 64) - 1, 0, None)
    assert parameters[:16] == b"\xff" * 8 + bytes(8)
    for key, other in ((-1, 0), (0, 1 << 64)):
        with pytest.raises(codec.CommandFailedError, match="expects a number of 64 bits"):
            codec.command_out(PrOutAction.REGISTER, key, other, None)


def test_types() -> None:
    codes = [codec.TYPE_CODES[kind] for kind in PrType]
    assert codes == [1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "action",
    [PrOutAction.RESERVE, PrOutAction.RELEASE, PrOutAction.PREEMPT, PrOutAction.PREEMPT_AND_ABORT],
)
def test_a_type_that_is_missing(action: PrOutAction) -> None:
    with pytest.raises(CommandFailedError, match=f"'type' is missing for '{action.value}'"):
        codec.command_out(action, KEY, 0, None)


def test_keys() -> None:
    data = struct.pack(">IIQQ", 7, 16, KEY, 5) + bytes(100)
    status = codec.decode_in(PrInAction.READ_KEYS, data)
    assert (status.generation, status.keys) == (7, [KEY, 5])
    assert status.reservation is UNSET


def test_more_keys_than_fit() -> None:
    """Who fences by the list must not take the others for absent."""
    data = struct.pack(">IIQQ", 7, 24, KEY, 5) + b"cut"
    with pytest.raises(codec.DataError, match="the device has 3 keys, and 2 fit in an answer"):
        codec.decode_in(PrInAction.READ_KEYS, data)


def test_a_reservation() -> None:
    data = struct.pack(">IIQ4xxB2x", 7, 16, KEY, 5) + bytes(100)
    status = codec.decode_in(PrInAction.READ_RESERVATION, data)
    kind = PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
    assert status.reservation == PrReservation(key=KEY, type=kind)


def test_no_reservation() -> None:
    status = codec.decode_in(PrInAction.READ_RESERVATION, struct.pack(">II", 7, 0))
    assert (status.generation, status.reservation) == (7, UNSET)


def test_capabilities() -> None:
    data = struct.pack(">HBBBBxx", 8, 0x0D, 0x81, 0xEA, 0x01)
    found = codec.decode_in(PrInAction.REPORT_CAPABILITIES, data).capabilities
    assert found is not UNSET
    assert (found.aptpl, found.aptpl_active, found.all_target_ports) == (True, True, True)
    assert found.specify_initiator_ports
    assert found.types == list(PrType)
    data = struct.pack(">HBBBBxx", 8, 0, 0, 0xEA, 0x01)
    found = codec.decode_in(PrInAction.REPORT_CAPABILITIES, data).capabilities
    assert found is not UNSET
    assert found.types is UNSET


def test_full_status() -> None:
    first = struct.pack(">Q4xBB4xHI", KEY, 0x01, 0x06, 2, 24) + bytes(range(24))
    second = struct.pack(">Q4xBB4xHI", 5, 0x02, 0x06, 3, 0)
    data = struct.pack(">II", 9, len(first) + len(second)) + first + second
    found = codec.decode_in(PrInAction.READ_FULL_STATUS, data).registrations
    assert isinstance(found, list)
    holder, other = found
    assert (holder.key, holder.type) == (KEY, PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
    assert (holder.relative_target_port, holder.transport_id) == (2, bytes(range(24)).hex())
    assert (other.key, other.type, other.all_target_ports) == (5, UNSET, True)


@given(st.sampled_from(list(PrInAction)), st.binary(max_size=100))
def test_any_answer(action: PrInAction, data: bytes) -> None:
    """What devices say is understood, or told to make no sense."""
    with suppress(DataError):
        codec.decode_in(action, data)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(0x18), "reservation conflict"),
        (Reply(8), "busy"),
        (Reply(0x28), "task set full"),
        (Reply(0x40), "status 0x40"),
        (check_condition(INVALID_FIELD), "check condition, sense 5/24/00"),
        (Reply(2, bytes([0x72, 6, 0x29, 3])), "check condition, sense 6/29/03"),
        (Reply(2), "check condition, sense 0/00/00"),
    ],
)
def test_why_a_command_failed(reply: Reply, words: str) -> None:
    assert codec.describe_failure(reply) == words


def test_unit_attention() -> None:
    assert codec.is_unit_attention(check_condition(RESET))
    assert codec.is_unit_attention(Reply(2, bytes([0x72, 6, 0x2A, 3])))
    assert not codec.is_unit_attention(check_condition(INVALID_FIELD))
    assert not codec.is_unit_attention(Reply(0, check_condition(RESET).sense))
