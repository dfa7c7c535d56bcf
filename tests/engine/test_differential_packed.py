# SPDX-License-Identifier: Apache-2.0
"""The engine's walk of packed rings against the numpy one, on the same sound and hostile rings."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.inspect_engine import EnginePackedUse, engine_packed_chains
from tests.engine.test_differential import solid
from tests.virtqueue.packed_support import PackedPair
from tests.virtqueue.reference import Chain, chains_of
from vhostblk.virtqueue.errors import BrokenRingError, ChainFault
from vhostblk.virtqueue.layout import PACKED_DESC
from vhostblk.virtqueue.walker import MAX_CHAIN

SIZE = 8
PAGE = 4096

#: Eleven adjacent regions, so that one buffer can touch more than it may; a hole; one more region.
PIECES = 11
LAYOUT = (*((number * PAGE, PAGE) for number in range(PIECES)), (1 << 32, 16 * PAGE))
END, FAR = PIECES * PAGE, 1 << 32

#: Places of indirect tables: inside a region, at the end of one, across two, in the hole.
TABLES = (FAR + 1024, FAR + 16 * PAGE - 64, 3 * PAGE - 32, END + 16)

_edges = st.builds(
    lambda edge, delta: max(0, edge + delta) & ((1 << 64) - 1),
    st.sampled_from([0, PAGE, 2 * PAGE, END, FAR, FAR + 16 * PAGE, (1 << 64) - 1]),
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
_owners = st.sampled_from([0, 1 << 7, 1 << 7, 1 << 7, 1 << 15, 0x8080])
_buffers = st.tuples(
    _addresses, _lengths, st.integers(0, SIZE), st.builds(int.__or__, _owners, st.integers(0, 3))
)
_jumps = st.tuples(
    st.sampled_from(TABLES),
    st.one_of(st.integers(1, 4).map(lambda count: 16 * count), st.integers(0, 100)),
    st.integers(0, SIZE),
    st.builds(int.__or__, _owners, st.sampled_from([4, 4, 4, 6, 5])),
)
_rings = st.lists(st.one_of(_buffers, _jumps), min_size=SIZE, max_size=SIZE)
_tables = st.lists(
    st.tuples(_addresses, _lengths, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    min_size=12,
    max_size=12,
)


def compare(pair: PackedPair, limit: int) -> list[Chain] | None:
    """Let both take chains; return them, or None where both say that the ring is broken."""
    device = pair.device
    in_flight = set(np.flatnonzero(device._in_flight).tolist())
    found = engine_packed_chains(device, limit)
    try:
        batch = device.pop(limit)
    except BrokenRingError:
        if found is not None:  # the queue judges ids, not the walker
            ids = [chain.head for chain in found]
            repeated = len({*ids, *in_flight}) < len(ids) + len(in_flight)
            assert repeated or max(ids) >= device.size
        return None
    chains = [] if batch is None else chains_of(batch)
    assert found == solid(chains)
    return chains


@settings(max_examples=200, deadline=None)
@given(_rings, _tables, st.integers(0, 2 * SIZE - 1), st.integers(1, SIZE))
def test_hostile_rings(
    ring: list[tuple[int, int, int, int]],
    entries: list[tuple[int, int, int, int]],
    start: int,
    limit: int,
) -> None:
    with closing(PackedPair(SIZE, start=start, layout=LAYOUT)) as pair:
        rows = np.array(entries, PACKED_DESC)
        for table, part in ((TABLES[0], rows[:4]), (TABLES[1], rows[4:8]), (TABLES[2], rows[8:10])):
            pair.memory.write(table, part.tobytes())
        pair.memory.write(3 * PAGE, rows[10:].tobytes())
        pair.driver.desc[:] = np.array(ring, PACKED_DESC)
        for _ in range(2 * SIZE):  # descriptors that used ones skip may come round for ever
            chains = compare(pair, limit)
            if not chains:
                break
            pair.give_back([chains[-1].head])


@pytest.mark.parametrize("count", [MAX_CHAIN - 1, MAX_CHAIN, MAX_CHAIN + 1])
@pytest.mark.parametrize("indirect", [False, True])
def test_long_chains(count: int, indirect: bool) -> None:
    with closing(PackedPair(2048, layout=((0, 64 * 1024), (FAR, 64 * 1024)))) as pair:
        if indirect:
            rows = np.array([(FAR, 1, 0, 2)] * count, PACKED_DESC)
            table = pair.memory.allocate(rows.nbytes)
            pair.memory.write(table, rows.tobytes())
            pair.driver.put(0, [(table, 16 * count, 4)])
        else:
            pair.driver.put(0, [(FAR, 1, 2)] * count)
        pair.driver.publish()
        chains = compare(pair, 1)
        assert chains is not None
        assert bool(chains[0].fault) == (count > MAX_CHAIN)


def test_order_fault_hides_what_follows() -> None:
    with closing(PackedPair(SIZE, layout=LAYOUT)) as pair:
        pair.driver.put(0, [(FAR, 16, 0), (FAR, 8, 2), (END, 8, 0), (FAR, 1, 2)])
        pair.driver.publish()
        chains = compare(pair, 1)
        assert chains is not None
        assert chains[0].fault is ChainFault.ORDER
        assert len(chains[0].segments) == 2


@pytest.mark.parametrize("start", [0, 6, SIZE + 6])
def test_used_chains_are_shown_together(start: int) -> None:
    """Before that the record of requests in flight is changed."""
    with closing(PackedPair(SIZE, start=start, layout=LAYOUT)) as pair:
        lengths = {1: 1, 3: 3, 2: 1}
        for head, count in lengths.items():
            pair.offer([head], count)
        pair.driver._lengths.update(lengths)
        assert len(pair.take(SIZE)) == 3
        engine = EnginePackedUse(pair.device)
        for head, length, count in ((1, 5, 1), (3, 0, 3)):
            engine.use(head, length, count)
            assert pair.driver.poll() == []
        engine.show()
        assert [(each.head, each.length) for each in pair.driver.poll()] == [(1, 5), (3, 0)]
