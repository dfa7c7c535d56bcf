# SPDX-License-Identifier: Apache-2.0
"""The record of requests in flight: what it says after a death at any moment, and false records."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.support import QueuePair
from vhostblk.virtqueue import split
from vhostblk.virtqueue.errors import BrokenRingError, InflightError
from vhostblk.virtqueue.inflight import SplitInflight
from vhostblk.virtqueue.inflight_area import InflightArea, make_inflight
from vhostblk.virtqueue.layout import (
    INFLIGHT_DESC_SPLIT,
    INFLIGHT_HEADER_SPLIT,
    inflight_split_bytes,
)
from vhostblk.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 8


class KilledError(Exception):
    """Stands for the process's death."""


class Survivor:
    """A ring and its record, which outlive the queues that work on them."""

    def __init__(self, start: int = 0, content: bytes = b"") -> None:
        self.pair = QueuePair(SIZE, start=start)
        described = make_inflight(1, SIZE, inflight_split_bytes)
        os.pwrite(described.fd, content, 0)
        self.area = InflightArea(described)
        os.close(described.fd)
        self.queue = self.restart()

    def close(self) -> None:
        self.pair.close()

    def restart(self) -> SplitQueue:
        part = self.area.part(0, inflight_split_bytes)
        config = self.pair.config()
        self.queue = SplitQueue(config, self.pair.mapped, event_idx=False, inflight=part)
        return self.queue

    def record(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """See header and descriptors."""
        part = self.area.part(0, inflight_split_bytes)
        assert part is not None
        from vhostblk.block.io.iovec import view_memory

        raw = np.frombuffer(view_memory(part.address, part.size), np.uint8)
        end = 16 + SIZE * INFLIGHT_DESC_SPLIT.itemsize
        return raw[:16].view(INFLIGHT_HEADER_SPLIT), raw[16:end].view(INFLIGHT_DESC_SPLIT)

    def take(self, limit: int = SIZE) -> list[int]:
        batch = self.queue.pop(limit)
        return [] if batch is None else batch.heads.tolist()

    def give_back(self, heads: list[int]) -> None:
        self.queue.push(np.array(heads, np.uint16), np.zeros(len(heads), np.uint32))


@pytest.mark.parametrize("content", [b"", bytes(10) + b"\1" * 200], ids=["zeroes", "anything"])
def test_a_fresh_record_begins_where_the_front_end_says(content: bytes) -> None:
    """The content of a record without a version is ignored."""
    with closing(Survivor(0xFFFE, content)) as survivor:
        assert survivor.queue.next_avail == 0xFFFE
        header, desc = survivor.record()
        assert header.tolist() == [(0, 1, SIZE, 0, 0xFFFE)]
        assert not desc["inflight"].any()


def test_requests_left_in_flight_are_taken_again_in_their_order_and_before_new_ones() -> None:
    with closing(Survivor(start=0xFFFE)) as survivor:
        survivor.pair.offer([5, 2, 7, 1])
        assert survivor.take() == [5, 2, 7, 1]
        survivor.give_back([7])
        survivor.pair.offer([7, 0])
        survivor.restart()
        assert survivor.queue.has_available()
        assert survivor.take(2) == [5, 2]
        assert survivor.take() == [1]
        assert survivor.take() == [7, 0]
        assert not survivor.queue.has_available()
        survivor.give_back([0, 1, 2, 5, 7])
        survivor.restart()
        assert survivor.take() == []


def test_the_order_of_taking_survives_several_deaths() -> None:
    with closing(Survivor()) as survivor:
        survivor.pair.offer([3, 4])
        survivor.take()
        survivor.restart()
        survivor.pair.offer([0])
        assert [*survivor.take(), *survivor.take()] == [3, 4, 0]
        survivor.restart()
        assert survivor.take() == [3, 4, 0]


def test_a_head_left_in_flight_and_made_available_again_breaks_the_ring() -> None:
    with closing(Survivor()) as survivor:
        survivor.pair.offer([3])
        survivor.take()
        survivor.restart()
        survivor.pair.offer([3])
        assert survivor.take() == [3]
        with pytest.raises(BrokenRingError, match="while in flight"):
            survivor.take()


#: Where a process may die, in the order of what it does: before this call, or after it.
_POINTS = ("take", "link", "store_release_u16", "strike_out")


def _deadly(function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    def kill(*arguments: Any) -> None:
        if not before:
            function(*arguments)
        raise KilledError

    return kill


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("point", _POINTS)
def test_killed_at_any_moment_nothing_is_lost_or_answered_twice(
    point: str, before: bool, data: st.DataObject
) -> None:
    """What the driver has not seen used is taken again, the rest is not, whenever death comes."""
    start = data.draw(st.integers(0, 0xFFFF))
    with closing(Survivor(start)) as survivor, pytest.MonkeyPatch.context() as patch:
        mine: list[int] = []  # the device has taken these
        waiting: list[int] = []  # the driver waits for these, in the order of the avail ring
        for _ in range(data.draw(st.integers(0, 6))):
            mine = _work(survivor, mine, waiting, data)
        target: Any = split if point == "store_release_u16" else SplitInflight
        patch.setattr(target, point, _deadly(getattr(target, point), before=before))
        try:
            for _ in range(4):
                mine = _work(survivor, mine, waiting, data)
        except KilledError:
            pass
        patch.undo()
        _see_used(survivor, waiting)
        survivor.restart()
        taken: list[int] = []
        while batch := survivor.take():
            taken += batch
        assert taken == waiting


def _see_used(survivor: Survivor, waiting: list[int]) -> None:
    driver = survivor.pair.driver
    while driver.last_used & 0xFFFF != int(driver.used_idx[0]):
        waiting.remove(int(driver.used_ring[driver.last_used % SIZE]["id"]))
        driver.last_used += 1


def _work(
    survivor: Survivor, mine: list[int], waiting: list[int], data: st.DataObject
) -> list[int]:
    free = [head for head in range(SIZE) if head not in waiting]
    offered = data.draw(st.permutations(free))[: data.draw(st.integers(0, len(free)))]
    waiting += offered
    survivor.pair.offer(offered)
    mine = mine + survivor.take(data.draw(st.integers(1, SIZE)))
    done = data.draw(st.permutations(mine))[: data.draw(st.integers(0, len(mine)))]
    if done:
        survivor.give_back(done)
    _see_used(survivor, waiting)
    return [head for head in mine if head not in done]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "version 2"),
        ("features", 1, "features 0x1"),
        ("desc_num", 4, "4 descriptors in one of 8"),
        ("used_idx", 100, "used at once"),
    ],
)
def test_a_record_of_another_kind_is_refused(field: str, value: int, message: str) -> None:
    with closing(Survivor()) as survivor:
        header, _ = survivor.record()
        header[field] = value
        with pytest.raises(InflightError, match=message):
            survivor.restart()


def test_a_list_that_leads_out_of_the_queue_is_refused() -> None:
    with closing(Survivor()) as survivor:
        header, desc = survivor.record()
        header["used_idx"] = 0xFFFE
        header["last_batch_head"] = 1
        desc["next"][1] = SIZE
        with pytest.raises(InflightError, match="head 8 in a queue of 8"):
            survivor.restart()


def test_a_list_that_is_a_loop_ends() -> None:
    with closing(Survivor()) as survivor:
        header, desc = survivor.record()
        header["used_idx"] = 0xFFFB
        header["last_batch_head"] = 1
        desc["next"][1] = 1
        desc["inflight"][[1, 2]] = 1
        survivor.restart()
        assert survivor.queue.left.tolist() == [2]


def test_more_requests_in_flight_than_were_made_available_break_the_ring() -> None:
    with closing(Survivor()) as survivor:
        _, desc = survivor.record()
        desc["inflight"] = 1
        survivor.restart()
        assert len(survivor.take()) == SIZE
        with pytest.raises(BrokenRingError):
            survivor.take()


def test_a_queue_larger_than_its_part_is_refused() -> None:
    with closing(QueuePair(2048)) as pair:
        described = make_inflight(1, SIZE, inflight_split_bytes)
        area = InflightArea(described)
        os.close(described.fd)
        part = area.part(0, inflight_split_bytes)
        with pytest.raises(InflightError, match="no room for 2048 descriptors"):
            SplitQueue(pair.config(), pair.mapped, event_idx=False, inflight=part)


def test_a_queue_larger_than_the_front_end_said_has_room() -> None:
    """QEMU asks for its device's size, while the guest's firmware may have larger rings."""
    with closing(QueuePair(256)) as pair:
        described = make_inflight(1, 128, inflight_split_bytes)
        area = InflightArea(described)
        os.close(described.fd)
        for _ in range(2):
            part = area.part(0, inflight_split_bytes)
            queue = SplitQueue(pair.config(), pair.mapped, event_idx=False, inflight=part)
            pair.offer([255])
            batch = queue.pop(1)
            assert batch is not None
            assert batch.heads.tolist() == [255]
            queue.push(batch.heads, np.zeros(1, np.uint32))
            pair.driver.last_used += 1
