# SPDX-License-Identifier: Apache-2.0
"""Descriptor chains, sound and hostile; every walk is also held against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.virtqueue.reference import Segment
from tests.virtqueue.support import ADJACENT, FAR, HOLE, KIB, LOW, Desc, Guest, write_table
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.layout import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from vhostblk.virtqueue.walker import MAX_CHAIN, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

N, W, I = DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT  # noqa: E741

#: Where the tests put indirect tables.
TABLE = FAR + 32 * KIB


def fault_of(guest: Guest, descriptors: Sequence[Desc]) -> ChainFault:
    (chain,) = guest.walk(descriptors)
    return chain.fault


def indirect_fault(guest: Guest, rows: Sequence[Desc]) -> ChainFault:
    """Walk one indirect table."""
    write_table(guest.memory, TABLE, rows)
    return fault_of(guest, [Desc(TABLE, 16 * len(rows), I)])


# Sound chains.


def test_chain_is_followed_in_order(guest: Guest) -> None:
    (chain,) = guest.walk(
        [Desc(LOW, 16, N, 3), Desc(0, 0), Desc(FAR, 1, W), Desc(99, 512, N | W, 2)]
    )
    assert chain.fault == ChainFault.NONE
    assert chain.segments == [
        Segment(guest.host(LOW), 16, False),
        Segment(guest.host(99), 512, True),
        Segment(guest.host(FAR), 1, True),
    ]


def test_chains_of_different_lengths_go_together(guest: Guest) -> None:
    chains = guest.walk(
        [Desc(0, 1), Desc(1, 1, N, 2), Desc(2, 1, N, 3), Desc(3, 1)], heads=[1, 0, 3, 2]
    )
    assert [len(chain.segments) for chain in chains] == [3, 1, 1, 2]
    assert [chain.head for chain in chains] == [1, 0, 3, 2]


def test_indirect_table_is_entered(guest: Guest) -> None:
    write_table(guest.memory, TABLE, [Desc(0, 16, N, 2), Desc(5, 5), Desc(FAR, 1, W)])
    (chain,) = guest.walk([Desc(TABLE, 48, I)])
    assert chain.fault == ChainFault.NONE
    assert [segment.length for segment in chain.segments] == [16, 1]


def test_direct_descriptors_may_end_in_an_indirect_one(guest: Guest) -> None:
    write_table(guest.memory, TABLE, [Desc(FAR, 1, W)])
    (chain,) = guest.walk([Desc(0, 16, N, 1), Desc(TABLE, 16, I)])
    assert chain.fault == ChainFault.NONE
    assert [segment.writable for segment in chain.segments] == [False, True]


def test_write_flag_of_the_indirect_descriptor_means_nothing(guest: Guest) -> None:
    write_table(guest.memory, TABLE, [Desc(0, 16)])
    (chain,) = guest.walk([Desc(TABLE, 16, I | W)])
    assert chain.segments == [Segment(guest.host(0), 16, False)]


def test_longest_indirect_table(guest: Guest) -> None:
    rows = [Desc(0, 1, N, place + 1) for place in range(MAX_CHAIN - 1)]
    assert indirect_fault(guest, [*rows, Desc(FAR, 1, W)]) == ChainFault.NONE


def test_buffer_across_adjacent_regions_becomes_two_segments(guest: Guest) -> None:
    (chain,) = guest.walk([Desc(ADJACENT - 10, 30)])
    assert chain.fault == ChainFault.NONE
    assert chain.segments == [
        Segment(guest.host(ADJACENT - 10), 10, False),
        Segment(guest.host(ADJACENT), 20, False),
    ]


def test_empty_buffer_counts_as_mapped(guest: Guest) -> None:
    (chain,) = guest.walk([Desc(HOLE, 0, N, 1), Desc(FAR, 1, W)])
    assert chain.fault == ChainFault.NONE


# 1. Loops.


def test_loop_in_the_direct_table(guest: Guest) -> None:
    assert fault_of(guest, [Desc(0, 1, N, 1), Desc(0, 1, N, 0)]) == ChainFault.TOO_LONG


def test_descriptor_that_follows_itself(guest: Guest) -> None:
    assert fault_of(guest, [Desc(0, 1, N | W, 0)]) == ChainFault.TOO_LONG


def test_loop_in_an_indirect_table(guest: Guest) -> None:
    assert indirect_fault(guest, [Desc(0, 1, N, 1), Desc(0, 1, N, 0)]) == ChainFault.TOO_LONG


def test_chain_longer_than_any_is_bounded_in_long_queues_too() -> None:
    guest = Guest(queue_size=2048)
    try:
        rows = [Desc(0, 1, N, place + 1) for place in range(2047)]
        (chain,) = guest.walk([*rows, Desc(0, 1)])
        assert chain.fault == ChainFault.TOO_LONG
        assert len(chain.segments) == MAX_CHAIN
    finally:
        guest.close()


# 2. next out of range.


def test_next_out_of_the_direct_table(guest: Guest) -> None:
    assert fault_of(guest, [Desc(0, 1, N, guest.queue_size)]) == ChainFault.NEXT_OUT_OF_RANGE


def test_next_out_of_the_indirect_table(guest: Guest) -> None:
    assert indirect_fault(guest, [Desc(0, 1, N, 2), Desc(0, 1)]) == ChainFault.NEXT_OUT_OF_RANGE


# 3. Indirect tables.


def test_indirect_table_of_length_0(guest: Guest) -> None:
    assert fault_of(guest, [Desc(TABLE, 0, I)]) == ChainFault.INDIRECT_LENGTH


def test_indirect_table_with_part_of_a_descriptor(guest: Guest) -> None:
    assert fault_of(guest, [Desc(TABLE, 24, I)]) == ChainFault.INDIRECT_LENGTH


def test_indirect_table_too_long(guest: Guest) -> None:
    assert fault_of(guest, [Desc(FAR, 16 * (MAX_CHAIN + 1), I)]) == ChainFault.INDIRECT_LENGTH


def test_indirect_descriptor_with_next(guest: Guest) -> None:
    assert fault_of(guest, [Desc(TABLE, 16, I | N, 1)]) == ChainFault.INDIRECT_NESTED


def test_indirect_inside_indirect(guest: Guest) -> None:
    assert indirect_fault(guest, [Desc(TABLE, 16, I)]) == ChainFault.INDIRECT_NESTED


def test_indirect_table_across_regions(guest: Guest) -> None:
    assert fault_of(guest, [Desc(ADJACENT - 16, 32, I)]) == ChainFault.INDIRECT_UNMAPPED


def test_indirect_table_unmapped(guest: Guest) -> None:
    assert fault_of(guest, [Desc(HOLE, 16, I)]) == ChainFault.INDIRECT_UNMAPPED


# 4. Addresses.


def test_address_plus_length_overflows(guest: Guest) -> None:
    assert fault_of(guest, [Desc((1 << 64) - 16, 32)]) == ChainFault.UNMAPPED


def test_unmapped_buffer(guest: Guest) -> None:
    assert fault_of(guest, [Desc(HOLE, 1)]) == ChainFault.UNMAPPED


def test_buffer_that_runs_into_a_hole(guest: Guest) -> None:
    (chain,) = guest.walk([Desc(HOLE - 10, 11)])
    assert chain.fault == ChainFault.UNMAPPED
    assert chain.segments == [Segment(0, 11, False)]


def test_one_bad_buffer_spoils_no_other_chain(guest: Guest) -> None:
    chains = guest.walk(
        [Desc(HOLE, 1), Desc(ADJACENT - 1, 2), Desc(HOLE - 1, 2), Desc(0, 4)], heads=[0, 1, 2, 3]
    )
    assert [chain.fault for chain in chains] == [
        ChainFault.UNMAPPED,
        ChainFault.NONE,
        ChainFault.UNMAPPED,
        ChainFault.NONE,
    ]
    assert [len(chain.segments) for chain in chains] == [1, 2, 1, 1]


def test_buffer_over_too_many_regions() -> None:
    page = 4 * KIB
    guest = Guest(layout=[(number * page, page) for number in range(10)])
    try:
        assert fault_of(guest, [Desc(0, 8 * page)]) == ChainFault.NONE
        assert fault_of(guest, [Desc(0, 8 * page + 1)]) == ChainFault.UNMAPPED
    finally:
        guest.close()


def test_end_of_the_address_space_is_not_adjacent_to_its_beginning() -> None:
    page = 4 * KIB
    guest = Guest(layout=[(0, page), (page, page)])
    top = Guest(layout=[(0, page)])
    try:
        # The front-end's own addresses of the topmost page would overflow: map it by hand.
        from vhostblk.virtqueue.memory import GuestMemory, MemoryRegion

        low, high = guest.mapped.regions
        last = MemoryRegion((1 << 64) - page, page, 0x1000, high.mapping)
        guest.mapped = GuestMemory([low, last])
        assert fault_of(guest, [Desc((1 << 64) - 16, 16)]) == ChainFault.NONE
        assert fault_of(guest, [Desc((1 << 64) - 16, 32)]) == ChainFault.UNMAPPED
    finally:
        guest.close()
        top.close()


# 5. Change between check and use.


def test_descriptors_are_a_private_copy(guest: Guest) -> None:
    write_table(guest.memory, guest.table, [Desc(0, 16, N, 1), Desc(FAR, 1, W)])
    batch = walk(np.zeros(1, np.uint16), guest.table_host(), guest.queue_size, guest.mapped)
    before = batch.iovs.copy()
    write_table(guest.memory, guest.table, [Desc(HOLE, 1 << 20)] * 8)
    assert (batch.iovs == before).all()
    assert not np.may_share_memory(batch.iovs, guest.mapped.span)


# 6. Order.


def test_readable_after_writable(guest: Guest) -> None:
    (chain,) = guest.walk(
        [Desc(0, 16, N, 1), Desc(FAR, 1, N | W, 2), Desc(0, 4, N, 3), Desc(9, 1, W)]
    )
    assert chain.fault == ChainFault.ORDER
    assert chain.segments == [
        Segment(guest.host(0), 16, False),
        Segment(guest.host(FAR), 1, True),
    ]


def test_first_of_several_order_violations_counts(guest: Guest) -> None:
    rows = [Desc(0, 1, N | (W if place % 2 == 0 else 0), place + 1) for place in range(7)]
    (chain,) = guest.walk([*rows, Desc(0, 1)])
    assert chain.segments == [Segment(guest.host(0), 1, True)]


# 14. Bounded memory.


def test_chains_that_share_one_run_of_descriptors_cost_no_more_than_the_longest_each(
    guest: Guest,
) -> None:
    rows = [Desc(0, 1, N, place + 1) for place in range(MAX_CHAIN)]
    rows[-1] = Desc(0, 1)
    write_table(guest.memory, TABLE, rows)
    chains = guest.walk([Desc(TABLE, 16 * MAX_CHAIN, I)] * 8, heads=range(8))
    assert [len(chain.segments) for chain in chains] == [MAX_CHAIN] * 8
