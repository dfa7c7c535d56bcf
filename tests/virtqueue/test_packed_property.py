# SPDX-License-Identifier: Apache-2.0
"""Random and hostile packed rings: the queue and a slow device find the same chains and faults."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.virtqueue.packed_support import Broken, PackedPair, take_chains
from tests.virtqueue.support import ADJACENT, FAR, HOLE, KIB, LOW
from vhostblk.virtqueue.errors import BrokenRingError, ChainFault
from vhostblk.virtqueue.layout import PACKED_DESC
from vhostblk.virtqueue.walker import MAX_CHAIN

SIZE = 8
REGION = 64 * KIB

#: Indirect tables: in the middle of a region, at the very end of one, across two, in a hole.
TABLES = (FAR + KIB, FAR + REGION - 64, ADJACENT - 32, HOLE + 16)

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
_buffers = st.tuples(_addresses, _lengths, st.one_of(st.sampled_from([0, 2]), st.integers(0, 3)))
_jumps = st.tuples(
    st.sampled_from(TABLES),
    st.one_of(st.integers(1, 5).map(lambda count: 16 * count), st.integers(0, 100)),
    st.sampled_from([4, 4, 4, 6]),
)
_chains = st.one_of(
    st.lists(_buffers, min_size=1, max_size=4),
    _jumps.map(lambda jump: [jump]),
    st.lists(st.one_of(_buffers, _jumps), min_size=1, max_size=4),
)
_entries = st.lists(
    st.tuples(_addresses, _lengths, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    min_size=20,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2 * SIZE - 1),
    st.lists(_chains, min_size=1, max_size=6),
    _entries,
    st.permutations(range(SIZE)),
    st.integers(1, SIZE),
)
def test_hostile_chains_get_the_same_verdicts(
    start: int,
    chains: list[list[tuple[int, int, int]]],
    entries: list[tuple[int, int, int, int]],
    ids: list[int],
    limit: int,
) -> None:
    with closing(PackedPair(SIZE, start=start)) as pair:
        rows = np.array(entries, PACKED_DESC)
        for table in TABLES[:2]:
            pair.memory.write(table, rows[:4].tobytes())
        pair.memory.write(TABLES[2], rows[4:6].tobytes())
        pair.memory.write(ADJACENT, rows[6:].tobytes())
        room = SIZE
        for number, chain in zip(ids, chains, strict=False):
            room -= len(chain)
            if room < 0:
                break
            pair.driver.put(number, chain)
        pair.driver.publish()
        while pair.take_judged(limit):
            pass


#: An id is available twice; behind it, the ring has a chain without an end.
_TWICE_AND_ENDLESS = [
    *((1 << 15, 1, 0), (0, 0, 0), (1 << 15, 0, 0), (1 << 15, 1, 0)),
    *((0, 0, 0), (1 << 15, 1, 0), (1 << 7, 0, 0), (1 << 7, 0, 0)),
]


@settings(max_examples=150, deadline=None)
@example(_TWICE_AND_ENDLESS, 6, 6)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 1 << 7, 1 << 7, 1 << 7, 1 << 15, 0x8080]),
            st.sampled_from([0, 0, 1]),
            st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE + 1)),
        ),
        min_size=SIZE,
        max_size=SIZE,
    ),
    st.integers(0, 2 * SIZE - 1),
    st.integers(1, SIZE),
)
def test_any_flags_and_ids_are_judged_alike(
    rows: list[tuple[int, int, int]], start: int, limit: int
) -> None:
    with closing(PackedPair(SIZE, start=start)) as pair:
        desc, device = pair.driver.desc, pair.device
        desc["flags"] = [owner | more for owner, more, _ in rows]
        desc["id"] = [number for _, _, number in rows]
        for _ in range(3):
            slow = take_chains(
                pair.ring_host(),
                SIZE,
                device._next_avail,
                device._taken,
                set(np.flatnonzero(device._in_flight).tolist()),
                limit,
            )
            if isinstance(slow, Broken):
                with pytest.raises(BrokenRingError):
                    device.pop(limit)
                return
            assert pair.take(limit) == [chain[-1].id for chain in slow]
            if slow:
                pair.give_back([slow[-1][-1].id])


@pytest.mark.parametrize("count", [MAX_CHAIN - 1, MAX_CHAIN, MAX_CHAIN + 1])
@pytest.mark.parametrize("indirect", [False, True])
def test_long_chains(count: int, indirect: bool) -> None:
    with closing(PackedPair(2048)) as pair:
        if indirect:
            pair.memory.write(LOW, np.array([(FAR, 1, 0, 2)] * count, PACKED_DESC).tobytes())
            pair.driver.put(0, [(LOW, 16 * count, 4)])
        else:
            pair.driver.put(0, [(FAR, 1, 2)] * count)
        pair.driver.publish()
        (chain,) = pair.take_judged()
        fault = ChainFault.INDIRECT_LENGTH if indirect else ChainFault.TOO_LONG
        assert chain.fault == (fault if count > MAX_CHAIN else ChainFault.NONE)


def test_bursts_of_many_alike_chains() -> None:
    with closing(PackedPair(256, start=200)) as pair:
        table = pair.memory.allocate(48)
        rows = [(FAR, 16, 0, 0), (FAR + 16, 512, 0, 2), (FAR + 600, 1, 0, 2)]
        pair.memory.write(table, np.array(rows, PACKED_DESC).tobytes())
        for number in range(256):
            pair.driver.put(number, [(table, 48, 4)])
        pair.driver.publish()
        assert len(pair.take_judged()) == 256
