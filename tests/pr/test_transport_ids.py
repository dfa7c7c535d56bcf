# SPDX-License-Identifier: Apache-2.0
"""Transport IDs: each kind, and each way to be wrong."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pr.client import parameters
from vhostblk.pr.transport_ids import ContentError, LengthError, parse

FIBRE_CHANNEL = bytes([0x00, *bytes(7), *b"portname", *bytes(8)])
SAS = bytes([0x06, 0, 0, 0, *b"sasaddr!", *bytes(12)])


def iscsi(name: bytes, kind: int = 0x05) -> bytes:
    return struct.pack(">BxH", kind, len(name)) + name


def listed(*identifiers: bytes) -> bytes:
    joined = b"".join(identifiers)
    return parameters(1, 2, 8) + struct.pack(">I", len(joined)) + joined


def test_none() -> None:
    assert parse(parameters()) == []
    assert parse(listed()) == []


def test_each_kind() -> None:
    name = b"iqn.2026-11.org.example:disk\0\0\0\0"
    found = parse(listed(FIBRE_CHANNEL, SAS, iscsi(name), iscsi(name, 0x45)))
    assert [len(each) for each in found] == [258] * 4
    assert found[0] == b"\0\0portname".ljust(258, b"\0")
    assert found[1] == b"\0\6sasaddr!".ljust(258, b"\0")
    assert found[2] == (b"\0\5" + struct.pack(">H", len(name)) + name).ljust(258, b"\0")
    assert found[3] == (b"\x40\5" + struct.pack(">H", len(name)) + name).ljust(258, b"\0")


def test_reserved_bits_of_the_first_byte() -> None:
    assert parse(listed(bytes([0x30]) + FIBRE_CHANNEL[1:])) == parse(listed(FIBRE_CHANNEL))


def test_what_follows_the_list_is_ignored() -> None:
    assert parse(listed(SAS) + b"more") == parse(listed(SAS))


@pytest.mark.parametrize("rest", [b"\0", b"\0\0\0"])
def test_a_length_that_is_cut_short(rest: bytes) -> None:
    with pytest.raises(LengthError):
        parse(parameters() + rest)


@pytest.mark.parametrize(
    "wrong",
    [
        parameters() + struct.pack(">I", 25) + SAS,
        parameters() + struct.pack(">I", 0xFFFFFFFF) + SAS,
        listed(SAS[:-1]),
        listed(FIBRE_CHANNEL[:9]),
        listed(b"\x05"),
        listed(iscsi(b"name\0\0\0\0")[:-1]),
        listed(iscsi(b"name\0\0")),
        listed(iscsi(b"name")),
        listed(iscsi(b"n" * 252 + b"\0\0\0\0")),
        listed(b"\x07" + SAS[1:]),
        listed(b"\x80" + SAS[1:]),
        listed(*[SAS] * 33),
    ],
)
def test_wrong_lists(wrong: bytes) -> None:
    with pytest.raises(ContentError):
        parse(wrong)


def test_as_many_as_the_library_takes() -> None:
    assert len(parse(listed(*[SAS] * 32))) == 32


@given(st.binary(max_size=400))
def test_anything_at_all(rest: bytes) -> None:
    with suppress(LengthError, ContentError):
        assert all(len(each) == 258 for each in parse(parameters() + rest))
