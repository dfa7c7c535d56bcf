# SPDX-License-Identifier: Apache-2.0
"""Random and hostile rings: the walker and the reference find the same chains and faults."""

from __future__ import annotations

import atexit

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.support import ADJACENT, FAR, HOLE, KIB, LOW, Desc, Guest, write_table

QUEUE_SIZE = 8
REGION = 64 * KIB

#: Indirect tables: in the middle of a region, at the very end of one, across two, in a hole.
TABLES = (FAR + KIB, FAR + REGION - 64, ADJACENT - 32, HOLE + 16)

_guest = Guest(QUEUE_SIZE)
atexit.register(_guest.close)

_near_edges = st.builds(
    lambda edge, delta: max(0, edge + delta) & ((1 << 64) - 1),
    st.sampled_from([LOW, ADJACENT, HOLE, FAR, FAR + REGION, (1 << 64) - 1]),
    st.integers(-40, 40),
)
_addresses = st.one_of(
    st.sampled_from([LOW + 5, FAR + 100]), _near_edges, st.integers(0, (1 << 64) - 1)
)
_lengths = st.one_of(
    st.integers(0, 64), st.sampled_from([REGION, 2 * REGION, 3 * REGION, (1 << 32) - 1])
)
_flags = st.one_of(st.integers(0, 3), st.integers(0, 7), st.integers(0, 0xFFFF))
_next = st.one_of(st.integers(0, QUEUE_SIZE - 1), st.integers(0, 0xFFFF))
_buffers = st.builds(Desc, _addresses, _lengths, _flags, _next)
_jumps = st.builds(
    Desc,
    st.sampled_from(TABLES),
    st.one_of(st.integers(1, 5).map(lambda count: 16 * count), st.integers(0, 100)),
    st.sampled_from([4, 4, 4, 5, 6, 0xFFFC]),
    _next,
)
_descriptors = st.one_of(_buffers, _buffers, _jumps)
_tables = st.lists(_descriptors, min_size=QUEUE_SIZE, max_size=QUEUE_SIZE)
_indirect_tables = st.lists(st.one_of(_buffers, _buffers, _buffers, _jumps), max_size=4)
_heads = st.lists(st.integers(0, QUEUE_SIZE - 1), min_size=1, max_size=QUEUE_SIZE, unique=True)

#: Only what a driver may do, but any of it: forward links to mapped buffers, in the right order.
_mapped = st.builds(
    lambda base, offset: base + offset, st.sampled_from([LOW, FAR]), st.integers(0, REGION - 200)
)


@settings(max_examples=250, deadline=None)
@given(_tables, st.lists(_indirect_tables, min_size=3, max_size=3), _heads)
def test_hostile_rings_get_the_same_verdicts(
    table: list[Desc], indirect_tables: list[list[Desc]], heads: list[int]
) -> None:
    for addr, rows in zip(TABLES, indirect_tables, strict=False):
        low = rows[: (ADJACENT - addr) // 16] if addr < ADJACENT else rows
        write_table(_guest.memory, addr, low)
        if len(low) < len(rows):
            write_table(_guest.memory, ADJACENT, rows[len(low) :])
    _guest.walk(table, heads)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(_mapped, st.integers(0, 200)), max_size=6),
    st.lists(st.tuples(_mapped, st.integers(0, 200)), min_size=1, max_size=6),
    st.permutations(range(QUEUE_SIZE)),
    st.integers(0, QUEUE_SIZE - 1),
)
def test_sound_chains_are_returned_as_they_were_made(
    readable: list[tuple[int, int]],
    writable: list[tuple[int, int]],
    places: list[int],
    direct: int,
) -> None:
    buffers = [(*b, 0) for b in readable] + [(*b, 2) for b in writable]
    direct = min(direct, len(buffers))
    table = [Desc(0, 0)] * QUEUE_SIZE
    for number, (addr, length, flags) in enumerate(buffers[:direct]):
        last = number == len(buffers) - 1
        following = places[number + 1]
        table[places[number]] = Desc(addr, length, flags | (0 if last else 1), following)
    rest = buffers[direct:]
    if rest:
        rows = [
            Desc(addr, length, flags | (number < len(rest) - 1), number + 1)
            for number, (addr, length, flags) in enumerate(rest)
        ]
        write_table(_guest.memory, TABLES[0], rows)
        table[places[direct]] = Desc(TABLES[0], 16 * len(rest), 4)
    (chain,) = _guest.walk(table, [places[0]])
    assert not chain.fault
    assert [(s.length, s.writable) for s in chain.segments] == [
        (length, flags == 2) for _, length, flags in buffers
    ]
    assert all(
        s.host == _guest.host(addr) for s, (addr, _, _) in zip(chain.segments, buffers, strict=True)
    )
