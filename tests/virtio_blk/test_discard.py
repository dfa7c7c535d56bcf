# SPDX-License-Identifier: Apache-2.0
"""DISCARD and WRITE_ZEROES: their segments."""

from __future__ import annotations

import struct

import pytest

from vhostblk.virtio_blk.config import MAX_REQUEST_SECTORS
from vhostblk.virtio_blk.discard import Range, RefusedError, parse_segments
from vhostblk.virtio_blk.layout import RequestType, Status

DISCARD, WRITE_ZEROES = RequestType.DISCARD, RequestType.WRITE_ZEROES
SIZE = 1 << 20


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def refusal(kind: int, payload: bytes, block: int = 512, size: int = SIZE) -> Status:
    with pytest.raises(RefusedError) as caught:
        parse_segments(kind, payload, size, block)
    return caught.value.status


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_segments_become_ranges(kind: RequestType) -> None:
    payload = segment(1, 2) + segment(0, 1)
    assert parse_segments(kind, payload, SIZE, 512) == [
        Range(512, 1024, False),
        Range(0, 512, False),
    ]


def test_write_zeroes_may_unmap() -> None:
    assert parse_segments(WRITE_ZEROES, segment(0, 1, 1), SIZE, 512) == [Range(0, 512, True)]


def test_32_segments_are_taken() -> None:
    assert len(parse_segments(DISCARD, segment(0, 1) * 32, SIZE, 512)) == 32


def test_segments_of_no_length_are_left_out() -> None:
    assert parse_segments(DISCARD, segment(5, 0), SIZE, 512) == []


def test_last_sector_is_inside() -> None:
    assert parse_segments(DISCARD, segment(SIZE // 512 - 1, 1), SIZE, 512)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 33 * 16])
def test_payload_of_wrong_length(length: int) -> None:
    payload = (segment(0, 1) * 33)[:length]
    assert refusal(DISCARD, payload) == Status.IOERR


def test_discard_with_unmap_is_unsupported() -> None:
    assert refusal(DISCARD, segment(0, 1, 1)) == Status.UNSUPP


@pytest.mark.parametrize("flags", [2, 3, 1 << 31])
@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_unknown_flags_are_unsupported(kind: RequestType, flags: int) -> None:
    assert refusal(kind, segment(0, 1, flags)) == Status.UNSUPP


@pytest.mark.parametrize(
    ("sector", "sectors"),
    [
        (SIZE // 512, 1),
        (SIZE // 512 - 1, 2),
        (1 << 55, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, (1 << 32) - 1),
    ],
)
def test_range_past_the_end(sector: int, sectors: int) -> None:
    assert refusal(DISCARD, segment(sector, sectors)) == Status.IOERR


def test_more_sectors_than_announced() -> None:
    payload = segment(0, MAX_REQUEST_SECTORS + 1)
    assert refusal(DISCARD, payload, size=1 << 50) == Status.IOERR


@pytest.mark.parametrize(("sector", "sectors"), [(1, 8), (8, 1)])
def test_range_that_is_no_whole_blocks(sector: int, sectors: int) -> None:
    assert refusal(DISCARD, segment(sector, sectors), block=4096) == Status.IOERR


def test_one_bad_segment_refuses_all() -> None:
    assert refusal(WRITE_ZEROES, segment(0, 1) + segment(SIZE, 1)) == Status.IOERR
