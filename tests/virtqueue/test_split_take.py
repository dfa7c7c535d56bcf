# SPDX-License-Identifier: Apache-2.0
"""SplitQueue: taking chains and returning them."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from tests.frontend.ring import Segment
from tests.virtqueue.support import QueuePair, map_memory
from vhostblk.virtqueue.errors import BrokenRingError, SetupError
from vhostblk.virtqueue.memory import GuestMemory


def test_empty_queue_gives_nothing(pair: QueuePair) -> None:
    assert pair.device.pop(8) is None


def test_chains_come_in_the_order_of_the_avail_ring(pair: QueuePair) -> None:
    pair.offer([3, 0, 5])
    assert pair.take() == [3, 0, 5]


def test_limit_leaves_the_rest_for_later(pair: QueuePair) -> None:
    pair.offer([3, 0, 5])
    assert pair.take(2) == [3, 0]
    assert pair.take(2) == [5]


def test_what_is_not_published_is_not_taken(pair: QueuePair) -> None:
    pair.driver.make_available(1)
    assert pair.take() == []


def test_used_elements_reach_the_driver(pair: QueuePair) -> None:
    buffer = pair.memory.allocate(512)
    heads = [pair.driver.add([Segment(buffer, 512, True)]) for _ in range(3)]
    pair.driver.publish()
    assert pair.take() == heads
    pair.give_back([heads[2], heads[0]], length=513)
    assert pair.driver.poll() == [(heads[2], 513), (heads[0], 513)]


@pytest.mark.parametrize("size", [1 << bit for bit in range(16)])
def test_every_size_can_be_filled_and_emptied(size: int) -> None:
    with closing(QueuePair(size)) as pair:
        pair.offer(range(size))
        assert pair.take() == list(range(size))
        pair.give_back(range(size), length=7)
        assert int(pair.driver.used_idx[0]) == size & 0xFFFF
        assert pair.driver.used_ring["id"].tolist() == list(range(size))
        assert (pair.driver.used_ring["len"] == 7).all()


@pytest.mark.parametrize("size", [1, 8, 32768])
def test_indices_wrap_around(size: int) -> None:
    with closing(QueuePair(size, start=65536 - size // 2 - 1)) as pair:
        for _ in range(3):
            pair.offer(range(size))
            assert pair.take() == list(range(size))
            pair.give_back(range(size))
        expected = (65536 - size // 2 - 1 + 3 * size) & 0xFFFF
        assert pair.device.next_avail == pair.device.next_used == expected
        assert int(pair.driver.used_idx[0]) == expected


def test_queue_goes_on_where_the_used_ring_is() -> None:
    with closing(QueuePair(start=1000)) as pair:
        assert pair.device.next_used == 1000


def test_avail_index_that_jumps_breaks_the_ring(pair: QueuePair) -> None:
    pair.driver.avail_idx[0] = pair.device.size + 1
    with pytest.raises(BrokenRingError, match="9 ahead in a queue of 8"):
        pair.device.pop(8)


def test_avail_index_that_goes_back_breaks_the_ring(pair: QueuePair) -> None:
    pair.driver.avail_idx[0] = 0xFFFF
    with pytest.raises(BrokenRingError):
        pair.device.pop(8)


def test_head_out_of_range_breaks_the_ring(pair: QueuePair) -> None:
    pair.offer([1, 8])
    with pytest.raises(BrokenRingError, match="head 8"):
        pair.device.pop(8)


def test_head_in_flight_breaks_the_ring(pair: QueuePair) -> None:
    pair.offer([1])
    pair.take()
    pair.offer([2, 1])
    with pytest.raises(BrokenRingError, match="in flight"):
        pair.device.pop(8)


def test_head_twice_in_one_burst_breaks_the_ring(pair: QueuePair) -> None:
    pair.offer([1, 2, 1])
    with pytest.raises(BrokenRingError, match="in flight"):
        pair.device.pop(8)


def test_nothing_is_taken_from_a_broken_ring(pair: QueuePair) -> None:
    pair.offer([1, 8])
    with pytest.raises(BrokenRingError):
        pair.device.pop(8)
    assert pair.device.next_avail == 0
    pair.driver.avail_ring[1] = 2
    assert pair.take() == [1, 2]


def test_head_may_come_again_once_it_is_used(pair: QueuePair) -> None:
    for _ in range(20):
        pair.offer([1])
        assert pair.take() == [1]
        pair.give_back([1])


def test_move_goes_on_in_other_mappings(pair: QueuePair) -> None:
    pair.offer([1])
    assert pair.take() == [1]
    pair.give_back([1])
    moved = map_memory(pair.memory)
    pair.device.move(moved)
    pair.offer([2])
    batch = pair.device.pop(8)
    assert batch is not None
    assert batch.memory is moved
    pair.give_back([2])
    assert int(pair.driver.used_idx[0]) == 2


def test_move_to_memory_without_the_ring_changes_nothing(pair: QueuePair) -> None:
    with pytest.raises(SetupError, match="not in guest memory"):
        pair.device.move(GuestMemory(pair.mapped.regions[:1]))
    pair.offer([2])
    assert pair.take() == [2]
    pair.give_back([2])
    assert int(pair.driver.used_idx[0]) == 1


def test_ring_misaligned_in_host_memory_is_refused(pair: QueuePair) -> None:
    from tests.virtqueue.support import vring_config
    from vhostblk.virtqueue.config import RegionDescription
    from vhostblk.virtqueue.memory import MemoryRegion
    from vhostblk.virtqueue.split import SplitQueue

    # The file offset is off by eight, so what the front-end sees aligned is not aligned here.
    region = pair.memory.describe()[1]
    odd = RegionDescription(
        region.guest_addr, region.size - 16, region.user_addr, region.mmap_offset + 8, region.fd
    )
    memory = GuestMemory([MemoryRegion.map(odd)])
    with pytest.raises(SetupError, match="not aligned"):
        SplitQueue(vring_config(pair.driver, pair.memory), memory, event_idx=False)


def test_rings_may_be_overwritten_by_the_buffers_they_name(pair: QueuePair) -> None:
    """13. Buffers that alias the rings: what was taken stays as it was judged."""
    ring = pair.driver
    ring.add([Segment(ring.desc_addr, 64, True), Segment(ring.avail_addr, 22, True)])
    ring.publish()
    batch = pair.device.pop(8)
    assert batch is not None
    for base, length in batch.iovs.tolist():
        pair.mapped.view(base, length)[:] = 0xFF
    assert batch.count.tolist() == [2]
    with pytest.raises(BrokenRingError):
        pair.device.pop(8)
    pair.give_back(batch.heads.tolist())
    assert int(ring.used_idx[0]) == 1
    assert np.all(ring.desc["len"][:4] == 0xFFFF_FFFF)
