# SPDX-License-Identifier: Apache-2.0
"""Framing: any split of the stream gives the same messages, and no descriptor is lost."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import open_fds
from vhostblk.vhost_user.codec import FdList, MessageDecoder, Part, encode_reply, encode_request
from vhostblk.vhost_user.errors import ProtocolError
from vhostblk.vhost_user.layout import FLAG_NEED_REPLY, FLAG_REPLY, HEADER, MAX_PAYLOAD, Request


def null_fds(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def test_layout_of_a_request() -> None:
    assert (
        encode_request(2, b"12345678", FLAG_NEED_REPLY)
        == ((2).to_bytes(4, "little") + (9).to_bytes(4, "little") + (8).to_bytes(4, "little"))
        + b"12345678"
    )


def test_layout_of_a_reply() -> None:
    assert HEADER.unpack(encode_reply(1, b"")) == (1, 5, 0)


messages = st.lists(
    st.tuples(st.integers(0, 50), st.binary(max_size=300), st.sampled_from([0, FLAG_NEED_REPLY])),
    max_size=6,
)


@given(messages, st.randoms(use_true_random=False))
def test_any_split_gives_the_same_messages(sent: list[tuple[int, bytes, int]], rng: object) -> None:
    import random

    assert isinstance(rng, random.Random)
    stream = b"".join(encode_request(*message) for message in sent)
    decoder = MessageDecoder()
    received = []
    position = 0
    while position < len(stream):
        size = rng.randint(1, decoder.wanted)
        message = decoder.feed(stream[position : position + size])
        position += size
        if message is not None:
            received.append((message.request, message.payload, message.flags & FLAG_NEED_REPLY))
    assert received == sent
    assert not decoder.mid_message


@given(st.binary(max_size=40), st.integers(0, 51), st.integers(0, 2))
def test_another_decoder_goes_on_where_one_stops(payload: bytes, place: int, count: int) -> None:
    stream = encode_request(3, payload, FLAG_NEED_REPLY)
    place = min(place, len(stream) - 1)
    before, after = MessageDecoder(), MessageDecoder()
    fds = null_fds(count) if place else []
    if place:
        assert before.feed(stream[: min(place, 12)], fds) is None
    if place > 12:
        assert before.feed(stream[12:place]) is None
    after.give_part(before.take_part())
    before.close()
    assert after.mid_message == bool(place)
    message = None
    while message is None:
        chunk = stream[place : place + after.wanted]
        place += len(chunk)
        message = after.feed(chunk)
    assert (message.request, message.payload, message.need_reply) == (3, payload, True)
    assert list(message.fds) == fds
    message.fds.close()


def test_parts_that_are_whole_messages_are_refused() -> None:
    before = open_fds()
    for data in (encode_request(3), encode_request(3, b"12"), bytes(12)):
        decoder = MessageDecoder()
        with pytest.raises(ProtocolError):
            decoder.give_part(Part(data, FdList(null_fds(1))))
        decoder.close()
    assert open_fds() == before


@given(st.binary(min_size=1, max_size=100))
def test_garbage_gives_messages_or_a_protocol_error(data: bytes) -> None:
    decoder = MessageDecoder()
    position = 0
    try:
        while position < len(data):
            size = min(decoder.wanted, len(data) - position)
            decoder.feed(data[position : position + size])
            position += size
    except ProtocolError:
        pass
    assert position <= len(data)


@pytest.mark.parametrize("cut", range(1, 12))
def test_descriptors_with_any_part_of_the_header_belong_to_the_message(cut: int) -> None:
    data = encode_request(Request.SET_VRING_KICK, bytes(8))
    first, second = null_fds(2)
    decoder = MessageDecoder()
    assert decoder.feed(data[:cut], [first]) is None
    assert decoder.feed(data[cut:12], [second]) is None
    message = decoder.feed(data[12:])
    assert message is not None
    assert message.fds.take_all() == [first, second]
    os.close(first)
    os.close(second)


def test_descriptors_with_the_payload_belong_to_no_message_and_are_closed() -> None:
    before = open_fds()
    data = encode_request(Request.SET_VRING_KICK, bytes(8))
    decoder = MessageDecoder()
    decoder.feed(data[:12])
    message = decoder.feed(data[12:], null_fds(1))
    assert message is not None
    assert len(message.fds) == 0
    assert open_fds() <= before


def test_the_next_message_starts_without_descriptors() -> None:
    decoder = MessageDecoder()
    one = decoder.feed(encode_request(1), null_fds(1))
    two = decoder.feed(encode_request(1))
    assert one is not None
    assert two is not None
    assert (len(one.fds), len(two.fds)) == (1, 0)
    one.fds.close()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (HEADER.pack(1, 0, 0), "protocol version 0"),
        (HEADER.pack(1, 2, 0), "protocol version 2"),
        (HEADER.pack(1, 1 | FLAG_REPLY, 0), "a reply"),
        (HEADER.pack(5, 1, MAX_PAYLOAD + 1), "SET_MEM_TABLE: payload of 4097 bytes"),
        (HEADER.pack(999, 1, 0xFFFFFFFF), "message 999: payload of 4294967295 bytes"),
    ],
)
def test_bad_header_is_refused_and_its_descriptors_closed(header: bytes, reason: str) -> None:
    before = open_fds()
    decoder = MessageDecoder()
    with pytest.raises(ProtocolError, match=reason):
        decoder.feed(header, null_fds(2))
    decoder.close()
    assert open_fds() <= before


def test_more_than_eight_descriptors_are_refused() -> None:
    before = open_fds()
    decoder = MessageDecoder()
    with pytest.raises(ProtocolError, match="9 file descriptors"):
        decoder.feed(encode_request(1), null_fds(9))
    decoder.close()
    assert open_fds() <= before


def test_more_bytes_than_wanted_are_refused() -> None:
    decoder = MessageDecoder()
    with pytest.raises(ProtocolError, match="13 bytes fed"):
        decoder.feed(bytes(13))


def test_half_a_message_is_noticed_and_its_descriptors_closed() -> None:
    before = open_fds()
    decoder = MessageDecoder()
    decoder.feed(b"\1", null_fds(3))
    assert decoder.mid_message
    decoder.close()
    decoder.close()
    assert open_fds() <= before


def test_fd_list_hands_over_or_closes() -> None:
    before = open_fds()
    fds = FdList(null_fds(2))
    taken = fds.take_all()
    fds.close()
    assert set(taken) <= open_fds()
    FdList(taken).close()
    assert open_fds() <= before
