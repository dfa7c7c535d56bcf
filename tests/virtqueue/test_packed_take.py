# SPDX-License-Identifier: Apache-2.0
"""PackedQueue: taking chains and returning them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from tests.frontend.ring import Segment
from tests.virtqueue.packed_support import PackedPair
from tests.virtqueue.support import map_memory, vring_config
from vhostblk.virtqueue.errors import BrokenRingError, SetupError
from vhostblk.virtqueue.layout import DESC_F_NEXT, DESC_F_WRITE, PACKED_F_AVAIL, PACKED_F_USED
from vhostblk.virtqueue.memory import GuestMemory
from vhostblk.virtqueue.packed import PackedQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8


@pytest.fixture
def pair() -> Iterator[PackedPair]:
    with closing(PackedPair()) as pair:
        yield pair


def test_empty_queue_gives_nothing(pair: PackedPair) -> None:
    assert pair.take() == []
    assert not pair.device.has_available()


def test_chains_come_in_the_order_of_the_ring(pair: PackedPair) -> None:
    pair.offer([3, 0, 5])
    assert pair.device.has_available()
    assert pair.take() == [3, 0, 5]
    assert not pair.device.has_available()


def test_limit_leaves_the_rest_for_later(pair: PackedPair) -> None:
    pair.offer([3, 0, 5])
    assert pair.take(2) == [3, 0]
    assert pair.take(2) == [5]


def test_what_is_not_published_is_not_taken(pair: PackedPair) -> None:
    pair.driver.make_available(1)
    assert pair.take() == []


def test_used_descriptors_reach_the_driver_in_the_order_of_completion(pair: PackedPair) -> None:
    buffer = pair.memory.allocate(512)
    ids = [pair.driver.add([Segment(buffer, 512, True)] * n) for n in (1, 3, 2)]
    pair.driver.publish()
    assert pair.take() == ids
    pair.give_back([ids[1], ids[0]], length=513)
    assert pair.driver.poll() == [(ids[1], 513), (ids[0], 513)]
    pair.give_back([ids[2]], length=1)
    assert pair.driver.poll() == [(ids[2], 1)]


@pytest.mark.parametrize(("length", "write"), [(0, 0), (7, DESC_F_WRITE)])
def test_a_used_descriptor_says_whether_something_was_written(
    pair: PackedPair, length: int, write: int
) -> None:
    pair.offer([0])
    pair.take()
    pair.give_back([0], length)
    assert pair.driver.desc["flags"][0] == PACKED_F_AVAIL | PACKED_F_USED | write


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100, 1000, 32768])
def test_every_size_can_be_filled_and_emptied(size: int) -> None:
    with closing(PackedPair(size, start=size + size // 3)) as pair:
        for _ in range(3):
            ids = [pair.driver.add([Segment(0, 8, True)]) for _ in range(size)]
            pair.driver.publish()
            assert pair.take() == ids
            assert pair.take() == []
            pair.give_back(ids, length=7)
            assert len(pair.driver.poll()) == size
        assert pair.device.base == pair.driver.base


def test_long_chains_go_round_the_end(pair: PackedPair) -> None:
    for turn in range(20):
        pair.offer([turn % SIZE], length=3)
        assert pair.take() == [turn % SIZE]
        pair.give_back([turn % SIZE])
    assert pair.device.base & 0x7FFF == 60 % SIZE


def test_a_chain_longer_than_the_usual_look_is_taken(pair: PackedPair) -> None:
    pair.offer([2], length=7)
    assert pair.take(1) == [2]


def test_a_chain_without_an_end_breaks_the_ring(pair: PackedPair) -> None:
    pair.driver.put(0, [(0, 0, 0)] * 8)
    pair.driver.desc["flags"][7] |= DESC_F_NEXT
    pair.driver.publish()
    with pytest.raises(BrokenRingError, match="without an end"):
        pair.take()


def test_a_chain_that_runs_into_those_in_flight_breaks_the_ring(pair: PackedPair) -> None:
    pair.offer([1], length=3)
    assert pair.take() == [1]
    pair.driver.put(2, [(0, 0, 0)] * 5)
    pair.driver.desc["flags"][7] |= DESC_F_NEXT
    pair.driver.publish()
    with pytest.raises(BrokenRingError, match="without an end"):
        pair.take()


def test_a_full_ring_gives_nothing_whatever_the_flags_say(pair: PackedPair) -> None:
    pair.offer(range(SIZE))
    assert len(pair.take()) == SIZE
    pair.driver.desc["flags"] = PACKED_F_USED  # available on the next lap
    assert pair.take() == []


def test_buffer_id_out_of_range_breaks_the_ring(pair: PackedPair) -> None:
    pair.offer([1, SIZE])
    with pytest.raises(BrokenRingError, match="buffer id 8 in a queue of 8"):
        pair.take()


def test_buffer_id_in_flight_breaks_the_ring(pair: PackedPair) -> None:
    pair.offer([1])
    pair.take()
    pair.offer([2, 1])
    with pytest.raises(BrokenRingError, match="in flight"):
        pair.take()


def test_buffer_id_twice_in_one_burst_breaks_the_ring(pair: PackedPair) -> None:
    pair.offer([1, 2, 1])
    with pytest.raises(BrokenRingError, match="in flight"):
        pair.take()


def test_nothing_is_taken_from_a_broken_ring(pair: PackedPair) -> None:
    pair.offer([1, 8])
    with pytest.raises(BrokenRingError):
        pair.take()
    pair.driver.desc["id"][1] = 2
    assert pair.take() == [1, 2]


def test_only_the_last_descriptors_id_counts(pair: PackedPair) -> None:
    pair.driver.put(4, [(0, 0, 0)] * 3)
    pair.driver.desc["id"][:2] = 99
    pair.driver.publish()
    assert pair.take() == [4]


def test_move_goes_on_in_other_mappings(pair: PackedPair) -> None:
    pair.offer([1])
    assert pair.take() == [1]
    pair.give_back([1])
    moved = map_memory(pair.memory)
    pair.device.move(moved)
    pair.offer([2])
    batch = pair.device.pop(8)
    assert batch is not None
    assert batch.memory is moved


def _without_ring(pair: PackedPair) -> GuestMemory:
    ring = pair.ring_host()
    regions = pair.mapped.regions
    return GuestMemory(r for r in regions if not 0 <= ring - r.mapping.address < r.size)


def test_move_to_memory_without_the_ring_changes_nothing(pair: PackedPair) -> None:
    with pytest.raises(SetupError, match="not in guest memory"):
        pair.device.move(_without_ring(pair))
    pair.offer([2])
    assert pair.take() == [2]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (0x8000, 0x8000_8000),
        (0x8000_8000, 0x8000_8000),
        (0, 0),
        (0x8003, 0x8003_8003),
        (0x0003_0003, 0x0003_0003),
    ],
)
def test_base_has_place_and_wrap_counter_once_or_twice(
    pair: PackedPair, base: int, expected: int
) -> None:
    config = replace(vring_config(pair.driver, pair.memory), next_avail=base)
    assert PackedQueue(config, pair.mapped, event_idx=False).base == expected


@pytest.mark.parametrize("base", [0x8008, 0x8000_0000 | SIZE, 0x8008_8000])
def test_base_outside_the_ring_is_refused(pair: PackedPair, base: int) -> None:
    config = replace(vring_config(pair.driver, pair.memory), next_avail=base)
    with pytest.raises(SetupError, match="place 8 in a packed ring of 8"):
        PackedQueue(config, pair.mapped, event_idx=False)


@pytest.mark.parametrize("part", ["desc_addr", "avail_addr", "used_addr"])
def test_misaligned_parts_are_refused(pair: PackedPair, part: str) -> None:
    config = vring_config(pair.driver, pair.memory)
    config = replace(config, **{part: getattr(config, part) + 2})
    with pytest.raises(SetupError, match="not aligned"):
        PackedQueue(config, pair.mapped, event_idx=False)


def test_rings_may_be_overwritten_by_the_buffers_they_name(pair: PackedPair) -> None:
    """13. Buffers that alias the ring: what was taken stays as it was judged."""
    ring = pair.driver
    ring.add([Segment(ring.desc_addr, 128, True), Segment(ring.avail_addr, 4, True)])
    ring.publish()
    batch = pair.device.pop(8)
    assert batch is not None
    for base, length in batch.iovs.tolist():
        pair.mapped.view(base, length)[:] = 0xFF
    assert batch.count.tolist() == [2]
    pair.give_back(batch.heads.tolist())
    assert pair.take() == []
    assert np.all(ring.desc["len"][1:] == 0xFFFF_FFFF)
