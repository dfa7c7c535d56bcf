# SPDX-License-Identifier: Apache-2.0
"""From chains to requests; every chain is also parsed by the reference."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from tests.virtio_blk.framing import SIZE, Parser, link
from tests.virtio_blk.support import header
from tests.virtqueue.support import HOLE, KIB, Desc, Guest, write_table
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtio_blk.request import PENDING, parse
from vhostblk.virtqueue.walker import walk

IN, OUT, FLUSH, GET_ID = RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID


def test_ordinary_read(parser: Parser) -> None:
    head, data, status = parser.place(header(IN, 7)), parser.place(bytes(512)), parser.place(b"?")
    request = parser.parse_chain([(head, 16, False), (data, 512, True), (status, 1, True)])
    assert (request.kind, request.sector, request.status) == (IN, 7, None)
    assert request.data == parser.host(data, 512)
    assert [request.status_addr] == parser.host(status)


def test_ordinary_write(parser: Parser) -> None:
    head, data, status = parser.place(header(OUT, 7)), parser.place(bytes(512)), parser.place(b"?")
    request = parser.parse_chain([(head, 16, False), (data, 512, False), (status, 1, True)])
    assert (request.kind, request.data) == (OUT, parser.host(data, 512))


def test_request_without_data(parser: Parser) -> None:
    head, status = parser.place(header(FLUSH)), parser.place(b"?")
    request = parser.parse_chain([(head, 16, False), (status, 1, True)])
    assert (request.kind, request.data) == (FLUSH, [])


# 6. Odd framing: legal.


def test_header_in_one_byte_descriptors(parser: Parser) -> None:
    head, status = parser.place(header(GET_ID)), parser.place(bytes(21))
    pieces = [(head + place, 1, False) for place in range(16)]
    request = parser.parse_chain([*pieces, (status, 21, True)])
    assert (request.kind, request.data) == (GET_ID, parser.host(status, 20))


def test_header_and_data_in_one_descriptor(parser: Parser) -> None:
    head, status = parser.place(header(OUT) + bytes(512)), parser.place(b"?")
    request = parser.parse_chain([(head, 528, False), (status, 1, True)])
    assert request.data == parser.host(head + 16, 512)


def test_header_that_ends_inside_a_data_descriptor(parser: Parser) -> None:
    head, rest = parser.place(header(OUT)[:10]), parser.place(header(OUT)[10:] + bytes(512))
    status = parser.place(b"?")
    request = parser.parse_chain([(head, 10, False), (rest, 518, False), (status, 1, True)])
    assert request.data == parser.host(rest + 6, 512)


def test_status_at_the_end_of_a_data_descriptor(parser: Parser) -> None:
    head, data = parser.place(header(IN)), parser.place(bytes(513))
    request = parser.parse_chain([(head, 16, False), (data, 513, True)])
    assert request.data == parser.host(data, 512)
    assert [request.status_addr] == parser.host(data + 512)


def test_data_in_one_byte_descriptors(parser: Parser) -> None:
    head, data = parser.place(header(GET_ID)), parser.place(bytes(21))
    pieces = [(data + place, 1, True) for place in range(21)]
    assert parser.parse_chain([(head, 16, False), *pieces]).data == parser.host(data, 20)


def test_empty_descriptors_between_header_and_status(parser: Parser) -> None:
    head, status = parser.place(header(FLUSH)), parser.place(b"?")
    request = parser.parse_chain(
        [(0, 0, False), (head, 16, False), (HOLE, 0, False), (status, 1, True), (HOLE, 0, True)]
    )
    assert (request.kind, request.status) == (FLUSH, None)


def test_buffers_of_the_other_direction_are_not_data(parser: Parser) -> None:
    head, extra = parser.place(header(IN) + bytes(512)), parser.place(bytes(513))
    request = parser.parse_chain([(head, 528, False), (extra, 513, True)])
    assert request.data == parser.host(extra, 512)


# 6. Odd framing: malformed, and answered wherever there is room for a status.


def test_header_missing(parser: Parser) -> None:
    status = parser.place(b"?")
    request = parser.parse_chain([(status, 1, True)])
    assert (request.status, [request.status_addr]) == (Status.IOERR, parser.host(status))


def test_header_too_short(parser: Parser) -> None:
    head, status = parser.place(header(IN)), parser.place(b"?")
    assert parser.parse_chain([(head, 15, False), (status, 1, True)]).status == Status.IOERR


def test_status_read_only(parser: Parser) -> None:
    head, status = parser.place(header(FLUSH)), parser.place(b"?")
    request = parser.parse_chain([(head, 16, False), (status, 1, False)])
    assert (request.status, request.status_addr) == (Status.IOERR, 0)


def test_no_room_for_the_status(parser: Parser) -> None:
    head = parser.place(header(FLUSH))
    assert parser.parse_chain([(head, 16, False)]).status_addr == 0


def test_status_descriptor_empty(parser: Parser) -> None:
    head = parser.place(header(FLUSH))
    assert parser.parse_chain([(head, 16, False), (head, 0, True)]).status_addr == 0


def test_status_unmapped_is_not_written_elsewhere(parser: Parser) -> None:
    head, data = parser.place(header(IN)), parser.place(bytes(512))
    request = parser.parse_chain([(head, 16, False), (data, 512, True), (HOLE, 1, True)])
    assert (request.status, request.status_addr) == (Status.IOERR, 0)


def test_data_unmapped_is_answered(parser: Parser) -> None:
    head, status = parser.place(header(IN)), parser.place(b"?")
    request = parser.parse_chain([(head, 16, False), (HOLE, 512, True), (status, 1, True)])
    assert (request.status, [request.status_addr]) == (Status.IOERR, parser.host(status))


def test_readable_after_writable_gets_no_status_in_readable_memory(parser: Parser) -> None:
    status, head = parser.place(b"?"), parser.place(header(IN))
    request = parser.parse_chain([(status, 1, True), (head, 16, False)])
    assert (request.status, [request.status_addr]) == (Status.IOERR, parser.host(status))


def test_chain_without_a_single_buffer(parser: Parser) -> None:
    (request,) = parser.parse([Desc(HOLE, 16, 4)])
    assert (request.status, request.status_addr) == (Status.IOERR, 0)


def test_malformed_chains_leave_the_others_alone(parser: Parser) -> None:
    head, status = parser.place(header(FLUSH)), parser.place(b"?")
    sound = [(head, 16, False), (status, 1, True)]
    table = link(sound) + link([(head, 3, False), (status, 1, True)], 2) + link(sound, 4)
    found = parser.parse([*table, Desc(HOLE, 16, 4)], heads=[0, 6, 2, 4])
    assert [request.status for request in found] == [None, Status.IOERR, Status.IOERR, None]


# 5. Change between check and use.


def test_header_is_a_private_copy(parser: Parser) -> None:
    head, status = parser.place(header(FLUSH)), parser.place(b"?")
    guest = parser.guest
    write_table(guest.memory, guest.table, link([(head, 16, False), (status, 1, True)]))
    parsed = parse(walk(np.zeros(1, np.uint16), guest.table_host(), 64, guest.mapped), SIZE, 512)
    guest.memory.write(head, header(IN, 1 << 60))
    assert parsed.records["type"].tolist() == [FLUSH]


# 8. Ranges.


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    ("sector", "length", "block", "inside"),
    [
        (0, 512, 512, True),
        (SIZE // 512 - 1, 512, 512, True),
        (SIZE // 512, 0, 512, True),
        (SIZE // 512, 512, 512, False),
        (SIZE // 512 - 1, 1024, 512, False),
        (SIZE // 512 + 1, 0, 512, False),
        (1 << 55, 512, 512, False),  # sector * 512 overflows to 0
        ((1 << 64) - 1, 512, 512, False),
        ((1 << 64) - 1, 1024, 512, False),
        (0, 511, 512, False),
        (0, 513, 512, False),
        (1, 4096, 4096, False),
        (8, 512, 4096, False),
        (8, 4096, 4096, True),
    ],
)
def test_range(
    parser: Parser, kind: RequestType, sector: int, length: int, block: int, inside: bool
) -> None:
    head, data = parser.place(header(kind, sector)), parser.place(bytes(length))
    status = parser.place(b"?")
    buffers = [(head, 16, False), (data, length, kind == IN), (status, 1, True)]
    request = parser.parse_chain(buffers, block=block)
    assert request.status == (None if inside else Status.IOERR)


@pytest.mark.parametrize(("size", "inside"), [(SIZE, False), (1 << 33, True)])
def test_sum_past_4_gib_does_not_wrap(size: int, inside: bool) -> None:
    """The same 8 MiB named so often that 32 bits would be left with 512 bytes."""
    big, eight = 1 << 32, 8 << 20
    with closing(Guest(layout=((0, 64 * KIB), (big, eight)))) as guest:
        guest.memory.write(big, header(IN))
        rows = [Desc(big, eight, 3, place + 1) for place in range(512)]
        rows += [Desc(big, 512, 3, 513), Desc(big, 1, 2)]
        write_table(guest.memory, KIB, rows)
        write_table(guest.memory, guest.table, [Desc(big, 16, 1, 1), Desc(KIB, 16 * 514, 4)])
        batch = walk(np.zeros(1, np.uint16), guest.table_host(), 8, guest.mapped)
        (record,) = parse(batch, size, 512).records
        assert record["length"] == (1 << 32) + 512
        assert record["status"] == (PENDING if inside else Status.IOERR)
