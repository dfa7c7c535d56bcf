# SPDX-License-Identifier: Apache-2.0
"""The protocol without sockets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pr.client import cdb, reserve_in, reserve_out
from vhostblk.reservations.errors import CommandError, CutShortError, DescriptorError, FeatureError
from vhostblk.reservations.wire import GREETING, Reply, Request, ServerSide


def greeted() -> ServerSide:
    side = ServerSide()
    assert side.wanted == 4
    assert not side.takes_descriptor
    assert side.receive(bytes(4)) is None
    return side


def test_no_feature_is_offered() -> None:
    assert bytes(4) == GREETING


@pytest.mark.parametrize("bit", range(32))
def test_a_feature_is_asked_for(bit: int) -> None:
    with pytest.raises(FeatureError):
        ServerSide().receive(struct.pack(">I", 1 << bit))


def test_a_request_in() -> None:
    side = greeted()
    assert side.is_idle
    assert side.receive(reserve_in(), [7]) == Request(reserve_in(), 7, b"")
    assert side.is_idle
    assert side.take_descriptor() == -1


def test_a_request_out_has_its_parameter_list() -> None:
    side = greeted()
    assert side.receive(reserve_out(length=24), [7]) is None
    assert side.wanted == 24
    assert not side.takes_descriptor
    assert side.receive(b"a" * 20) is None
    assert side.wanted == 4
    assert side.receive(b"b" * 4) == Request(reserve_out(length=24), 7, b"a" * 20 + b"b" * 4)


def test_a_request_out_without_parameters() -> None:
    request = greeted().receive(reserve_out(length=0), [7])
    assert request == Request(reserve_out(length=0), 7, b"")


@given(cut=st.integers(1, 15), at=st.integers(0, 1))
def test_the_descriptor_comes_with_any_byte(cut: int, at: int) -> None:
    side = greeted()
    message = reserve_in()
    first, second = ([7], []) if at == 0 else ([], [7])
    assert side.receive(message[:cut], first) is None
    assert not side.is_idle
    assert side.wanted == 16 - cut
    assert side.receive(message[cut:], second) == Request(message, 7, b"")


def test_no_descriptor() -> None:
    with pytest.raises(DescriptorError, match="No file descriptor"):
        greeted().receive(reserve_in())


def test_two_descriptors_at_once() -> None:
    side = greeted()
    with pytest.raises(DescriptorError, match="More than one"):
        side.receive(b"\x5e", [7, 8])
    assert side.take_descriptor() == 7


def test_two_descriptors_one_after_the_other() -> None:
    side = greeted()
    side.receive(b"\x5e", [7])
    assert side.holds_descriptor
    with pytest.raises(DescriptorError, match="More than one"):
        side.receive(b"\0", [8])
    assert side.take_descriptor() == 7


def test_descriptors_that_the_kernel_dropped() -> None:
    with pytest.raises(DescriptorError, match="Too many"):
        greeted().receive(b"\x5e", truncated=True)


def test_other_commands() -> None:
    for operation in set(range(256)) - {0x5E, 0x5F}:
        side = greeted()
        with pytest.raises(CommandError):
            side.receive(cdb(operation, 0, 0, 24), [7])
        assert side.take_descriptor() == 7


@pytest.mark.parametrize("operation", [0x5E, 0x5F])
@pytest.mark.parametrize(("length", "allowed"), [(8192, True), (8193, False), (65535, False)])
def test_the_longest_data(operation: int, length: int, allowed: bool) -> None:
    side = greeted()
    if allowed:
        side.receive(cdb(operation, 0, 0, length), [7])
    else:
        with pytest.raises(CommandError):
            side.receive(cdb(operation, 0, 0, length), [7])


def test_only_bytes_7_and_8_are_the_length() -> None:
    words = bytearray(reserve_out(length=4))
    words[5:7] = b"\xff\xff"
    side = greeted()
    assert side.receive(bytes(words), [7]) is None
    assert side.wanted == 4


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\0\0"],
        [bytes(4), b"\x5e"],
        [bytes(4), reserve_out(length=24)],
        [bytes(4), reserve_out(length=24), b"abc"],
    ],
)
def test_the_end_in_the_middle_of_a_message(pieces: list[bytes]) -> None:
    side = ServerSide()
    for piece in pieces:
        side.receive(piece, [7] if side.takes_descriptor else [])
    with pytest.raises(CutShortError):
        side.receive(b"")


def test_the_end_between_two_messages() -> None:
    assert greeted().receive(b"") is None


@pytest.mark.parametrize(("status", "size"), [(0, 5), (2, 0), (24, 0)])
def test_data_only_with_good(status: int, size: int) -> None:
    sense = b"s" * 18
    encoded = Reply(status, sense, b"a" * 10).encode(5)
    assert encoded == struct.pack(">iI96s", status, size, sense) + b"a" * size


def test_sense_data_that_are_too_long() -> None:
    assert len(Reply(2, b"s" * 200).encode(5)) == 104


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=30))
def test_anything_at_all(pieces: list[tuple[bytes, bool]]) -> None:
    """No more is read than a message has, and each descriptor has one owner."""
    side, owned, given = ServerSide(), 0, 0
    for data, with_fd in pieces:
        data = data[: side.wanted]
        fds = [7] if with_fd and side.takes_descriptor else []
        given += len(fds)
        held = side.holds_descriptor
        try:
            request = side.receive(data, fds)
        except (CommandError, CutShortError, DescriptorError, FeatureError):
            owned += bool(fds and held)
            break
        owned += request is not None
        assert 0 < side.wanted <= 8192
    owned += side.take_descriptor() >= 0
    assert owned == given
