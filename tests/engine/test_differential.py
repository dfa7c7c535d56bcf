# SPDX-License-Identifier: Apache-2.0
"""The engine's walker and parser against the numpy ones, on the same sound and hostile rings."""

from __future__ import annotations

import atexit
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.inspect_engine import engine_chains, engine_requests
from tests.engine.inspection import inspection
from tests.virtio_blk.reference import requests_of
from tests.virtqueue.reference import Chain, chains_of
from tests.virtqueue.support import KIB, Desc, Guest, write_table
from vhostblk.virtio_blk.discard import RefusedError, max_payload, parse_segments
from vhostblk.virtio_blk.layout import RequestType
from vhostblk.virtio_blk.request import parse
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.walker import MAX_CHAIN, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE_SIZE = 8
PAGE = 4096

#: Eleven adjacent regions, so that one buffer can touch more than it may; a hole; one more region.
#: The first has the descriptor table at its end.
PIECES = 11
LAYOUT = (*((number * PAGE, PAGE) for number in range(PIECES)), (1 << 32, 64 * KIB))
END, FAR = PIECES * PAGE, 1 << 32

#: Places of indirect tables: inside a region, at the end of one, across two, in the hole.
TABLES = (FAR + KIB, FAR + 64 * KIB - 64, 3 * PAGE - 32, END + 16)

SIZE = 1 << 20

_guest = Guest(QUEUE_SIZE, LAYOUT)
atexit.register(_guest.close)

_edges = st.builds(
    lambda edge, delta: max(0, edge + delta) & ((1 << 64) - 1),
    st.sampled_from([0, PAGE, 2 * PAGE, END, FAR, FAR + 64 * KIB, (1 << 64) - 1]),
    st.integers(-40, 40),
)
_addresses = st.one_of(
    st.sampled_from([5 * PAGE + 8, FAR + 100]), _edges, st.integers(0, (1 << 64) - 1)
)
_lengths = st.one_of(
    st.integers(0, 64),
    st.integers(1, PIECES).map(lambda pages: pages * PAGE),
    st.just((1 << 32) - 1),
)
_flags = st.one_of(st.integers(0, 3), st.integers(0, 7), st.integers(0, 0xFFFF))
_next = st.one_of(st.integers(0, QUEUE_SIZE - 1), st.integers(0, 0xFFFF))
_buffers = st.builds(Desc, _addresses, _lengths, _flags, _next)
_good_buffers = st.builds(
    Desc,
    st.builds(
        lambda base, at: base + at, st.sampled_from([0, 4 * PAGE, FAR]), st.integers(0, 3000)
    ),
    st.integers(0, 600),
    st.sampled_from([0, 1, 1, 2, 3, 3]),
    st.integers(0, QUEUE_SIZE - 1),
)
_jumps = st.builds(
    Desc,
    st.sampled_from(TABLES),
    st.one_of(st.integers(1, 5).map(lambda count: 16 * count), st.integers(0, 100)),
    st.sampled_from([4, 4, 4, 5, 6, 0xFFFC]),
    _next,
)
_descriptors = st.one_of(_good_buffers, _good_buffers, _buffers, _jumps)
_tables = st.lists(_descriptors, min_size=QUEUE_SIZE, max_size=QUEUE_SIZE)
_indirect = st.lists(
    st.lists(st.one_of(_good_buffers, _good_buffers, _buffers, _jumps), max_size=4),
    min_size=3,
    max_size=3,
)
_heads = st.lists(st.integers(0, QUEUE_SIZE - 1), min_size=1, max_size=QUEUE_SIZE, unique=True)
_headers = st.builds(
    lambda kind, sector: struct.pack("<IIQ", kind, 0, sector),
    st.sampled_from([0, 0, 1, 1, 4, 8, 11, 13, 99]),
    st.one_of(st.integers(0, SIZE // 512 + 2), st.integers(0, (1 << 64) - 1)),
)


def solid(chains: Sequence[Chain]) -> list[Chain]:
    """Leave out empty segments: the engine knows none."""
    return [
        chain._replace(segments=[segment for segment in chain.segments if segment.length])
        for chain in chains
    ]


def lay_out(table: Sequence[Desc], indirect: Sequence[Sequence[Desc]]) -> None:
    write_table(_guest.memory, _guest.table, table)
    for addr, rows in zip(TABLES, indirect, strict=False):
        edge = (3 * PAGE - addr) // 16 if addr < 3 * PAGE else len(rows)
        write_table(_guest.memory, addr, rows[:edge])
        if rows[edge:]:
            write_table(_guest.memory, 3 * PAGE, rows[edge:])


def compare(guest: Guest, heads: Sequence[int], block: int = 512) -> list[Chain]:
    """Let both walk and parse; return the chains."""
    table, size, memory = guest.table_host(), guest.queue_size, guest.mapped
    batch = walk(np.array(heads, np.uint16), table, size, memory)
    chains = chains_of(batch)
    assert engine_chains(heads, table, size, memory) == solid(chains)
    found = engine_requests(heads, table, size, memory, size=SIZE, block=block)
    assert requests_of(found) == requests_of(parse(batch, SIZE, block))
    return chains


@settings(max_examples=100, deadline=None)
@given(_tables, _indirect, _heads, st.sampled_from([512, 4096]))
def test_hostile_rings(
    table: list[Desc], indirect: list[list[Desc]], heads: list[int], block: int
) -> None:
    lay_out(table, indirect)
    compare(_guest, heads, block)


@settings(max_examples=100, deadline=None)
@given(
    _headers,
    st.lists(st.integers(0, 20), max_size=3),
    st.sampled_from([0, 1, 512, 1024]),
    st.lists(st.integers(0, 600), max_size=2),
    st.sampled_from([None, None, None, 0, 1, 2]),
    st.sampled_from([512, 4096]),
)
def test_framings(
    header: bytes, cuts: list[int], send: int, want: list[int], hole: int | None, block: int
) -> None:
    """A header in pieces, data for and from the device, and somewhere perhaps a hole."""
    _guest.memory.write(FAR, header)
    buffers: list[tuple[int, int, int]] = []
    addr, left = FAR, len(header) + send
    for cut in cuts:
        taken = min(cut, left)
        buffers.append((addr, taken, 0))
        addr, left = addr + taken, left - taken
    buffers.append((addr, left, 0))
    buffers += [(FAR + 8 * KIB, length, 2) for length in want]
    if hole is not None and hole < len(buffers):
        buffers[hole] = (END, *buffers[hole][1:])
    last = len(buffers) - 1
    table = [
        Desc(addr, length, flags | (number < last), number + 1)
        for number, (addr, length, flags) in enumerate(buffers)
    ]
    write_table(_guest.memory, _guest.table, table)
    compare(_guest, [0], block)


@pytest.mark.parametrize("regions", [7, 8, 9])
def test_buffer_in_many_regions(regions: int) -> None:
    last_piece = 1
    length = (regions - 2) * PAGE + 100 + last_piece
    lay_out([Desc(2 * PAGE - 100, length, 2)], [])
    (chain,) = compare(_guest, [0])
    assert bool(chain.fault) == (regions > 8)


@pytest.mark.parametrize("count", [MAX_CHAIN - 1, MAX_CHAIN, MAX_CHAIN + 1])
@pytest.mark.parametrize("indirect", [False, True])
def test_long_chains(count: int, indirect: bool) -> None:
    guest = Guest(2048, ((0, 64 * KIB), (1 << 32, 64 * KIB)))
    try:
        rows = [Desc(FAR, 1, 2 | (place < count - 1), place + 1) for place in range(count)]
        if indirect:
            write_table(guest.memory, FAR + 4096, rows)
            write_table(guest.memory, guest.table, [Desc(FAR + 4096, 16 * count, 4)])
        else:
            write_table(guest.memory, guest.table, rows)
        (chain,) = compare(guest, [0])
        assert bool(chain.fault) == (count > MAX_CHAIN)
    finally:
        guest.close()


def test_order_fault_hides_what_follows() -> None:
    lay_out([Desc(FAR, 16, 1, 1), Desc(FAR, 8, 3, 2), Desc(END, 8, 1, 3), Desc(FAR, 1, 2)], [])
    (chain,) = compare(_guest, [0])
    assert chain.fault is ChainFault.ORDER
    assert len(chain.segments) == 2


_discard_numbers = st.one_of(
    st.integers(0, 40), st.integers(0, (1 << 32) - 1), st.sampled_from([(1 << 22) - 1, 1 << 22])
)
_discard_segments = st.builds(
    lambda sector, sectors, flags: struct.pack("<QII", sector, sectors, flags),
    st.one_of(st.integers(0, SIZE // 512 + 8), st.integers(0, (1 << 64) - 1)),
    _discard_numbers,
    st.sampled_from([0, 0, 0, 1, 2, 0x8000_0000]),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(_discard_segments, max_size=4).map(b"".join),
    st.one_of(st.just(b""), st.binary(max_size=17)),
    st.sampled_from([RequestType.DISCARD, RequestType.WRITE_ZEROES]),
    st.sampled_from([SIZE, 1 << 40]),
    st.sampled_from([512, 4096]),
)
def test_discard_payloads(
    payload: bytes, surplus: bytes, kind: RequestType, size: int, block: int
) -> None:
    _compare_discard(payload + surplus, kind, size, block)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33])
def test_number_of_discard_segments(count: int) -> None:
    _compare_discard(bytes(16 * count), RequestType.DISCARD, SIZE, 512)


def _compare_discard(payload: bytes, kind: RequestType, size: int, block: int) -> None:
    found = inspection().lib.vb_inspect_discard(payload, len(payload), kind, size, block)
    try:
        if len(payload) > max_payload():
            expected = 1
        else:
            parse_segments(kind, payload, size, block)
            expected = 255
    except RefusedError as error:
        expected = error.status
    assert found == expected
