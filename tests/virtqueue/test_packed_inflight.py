# SPDX-License-Identifier: Apache-2.0
"""The record of a packed ring's requests: after a death at any moment, and false records."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.packed_support import PackedPair
from tests.virtqueue.support import vring_config
from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.errors import InflightError
from vhostblk.virtqueue.inflight_area import InflightArea, InflightPart, make_inflight
from vhostblk.virtqueue.inflight_packed import PackedInflight
from vhostblk.virtqueue.layout import (
    INFLIGHT_DESC_PACKED,
    INFLIGHT_HEADER_PACKED,
    inflight_packed_bytes,
)
from vhostblk.virtqueue.packed import PackedQueue

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 8


class KilledError(Exception):
    """Stands for the process's death."""


class Survivor:
    """A ring and its record, which outlive the queues that work on them."""

    def __init__(self, start: int = 0) -> None:
        self.pair = PackedPair(SIZE, start=start, layout=((0, 65536),))
        described = make_inflight(1, SIZE, inflight_packed_bytes)
        self.area = InflightArea(described)
        os.close(described.fd)
        self.queue = self.restart()

    def close(self) -> None:
        self.pair.close()

    def part(self) -> InflightPart:
        part = self.area.part(0, inflight_packed_bytes)
        assert part is not None
        return part

    def restart(self) -> PackedQueue:
        config = vring_config(self.pair.driver, self.pair.memory)
        # The front-end knows no better than at the first start; see `known_base`.
        queue = PackedQueue(config, self.pair.mapped, event_idx=False, inflight=self.part())
        self.pair.device = self.queue = queue
        return queue

    def record(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """See header and descriptors."""
        part = self.part()
        raw = np.frombuffer(view_memory(part.address, part.size), np.uint8)
        end = 32 + 32 * ((part.size - 32) // 32)
        return raw[:32].view(INFLIGHT_HEADER_PACKED), raw[32:end].view(INFLIGHT_DESC_PACKED)

    def offer(self, ids: list[int], length: int = 1) -> None:
        """Make chains available as a driver that knows what it did."""
        driver = self.pair.driver
        self.pair.offer(ids, length)
        driver._lengths.update(dict.fromkeys(ids, length))

    def take(self, limit: int = SIZE) -> list[int]:
        return self.pair.take(limit)

    def give_back(self, ids: list[int]) -> None:
        self.pair.give_back(ids)


def test_layouts_are_those_of_the_specification() -> None:
    assert INFLIGHT_HEADER_PACKED.itemsize == INFLIGHT_DESC_PACKED.itemsize == 32
    offsets = {name: field[1] for name, field in (INFLIGHT_HEADER_PACKED.fields or {}).items()}
    assert offsets["free_head"] == 12
    assert offsets["used_idx"] == 16
    assert offsets["used_wrap_counter"] == 20


def test_a_fresh_record_begins_where_the_front_end_says() -> None:
    with closing(Survivor(start=13)) as survivor:
        assert survivor.queue.base == 0x0005_0005
        header, desc = survivor.record()
        names = ("version", "used_idx", "used_wrap_counter")
        assert [int(header[name][0]) for name in names] == [1, 5, 0]
        assert desc["next"].tolist() == list(range(1, len(desc) + 1))


def test_requests_left_in_flight_are_taken_again_in_their_order_and_before_new_ones() -> None:
    with closing(Survivor(start=SIZE - 1)) as survivor:
        survivor.offer([5, 2, 7])
        survivor.offer([1], length=3)
        assert survivor.take() == [5, 2, 7, 1]
        survivor.give_back([7])
        survivor.pair.driver.poll()
        survivor.offer([7, 0])
        survivor.restart()
        assert survivor.queue.has_available()
        assert survivor.take(2) == [5, 2]
        assert survivor.take() == [1]
        assert survivor.take() == [7, 0]
        assert not survivor.queue.has_available()
        survivor.give_back([0, 1, 2, 5, 7])
        assert len(survivor.pair.driver.poll()) == 5
        survivor.restart()
        assert survivor.take() == []
        assert survivor.queue.base == survivor.pair.driver.base


def test_chains_are_what_they_were_when_taken() -> None:
    """The ring may have been overwritten since, by used descriptors of others."""
    with closing(Survivor()) as survivor:
        rows = [(4096, 16, 0), (8192, 512, 2), (16384, 1, 2)]
        survivor.offer([0])
        survivor.pair.driver.put(3, rows)
        survivor.pair.driver.publish()
        before = survivor.queue.pop(8)
        assert before is not None
        survivor.pair.driver.desc["addr"] = 0
        batch = survivor.restart().pop(8)
        assert batch is not None
        assert batch.heads.tolist() == [0, 3]
        assert batch.iovs.tolist() == before.iovs.tolist()


#: Where a process may die, in the order of what it does: before this call, or after it.
_POINTS = ("take", "_store_heads", "_store_places", "link", "_show", "strike_out")


def _deadly(function: Callable[..., Any], *, before: bool, lives: int) -> Callable[..., Any]:
    left = lives

    def kill(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            return function(*arguments)
        if not before:
            function(*arguments)
        raise KilledError

    return kill


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("point", _POINTS)
def test_killed_at_any_moment_nothing_is_lost_or_answered_twice(
    point: str, before: bool, data: st.DataObject
) -> None:
    """What the driver has not seen used is taken again, the rest is not, whenever death comes."""
    start = data.draw(st.integers(0, 2 * SIZE - 1))
    with closing(Survivor(start)) as survivor, pytest.MonkeyPatch.context() as patch:
        mine: list[int] = []  # the device has taken these
        waiting: list[int] = []  # the driver waits for these, in the order of the ring
        for _ in range(data.draw(st.integers(0, 6))):
            mine = _work(survivor, mine, waiting, data)
        target: Any = PackedQueue if point == "_show" else PackedInflight
        lives = data.draw(st.integers(0, 2))
        patch.setattr(target, point, _deadly(getattr(target, point), before=before, lives=lives))
        try:
            for _ in range(4):
                mine = _work(survivor, mine, waiting, data)
        except KilledError:
            pass
        patch.undo()
        for _ in range(data.draw(st.integers(0, 1))):
            _kill_recovery(survivor, patch, data)
        _see_used(survivor, waiting)
        survivor.restart()
        taken: list[int] = []
        while batch := survivor.take():
            taken += batch
        assert taken == waiting
        while taken:
            done = data.draw(st.permutations(taken))[: data.draw(st.integers(1, len(taken)))]
            survivor.give_back(done)
            assert [used.head for used in survivor.pair.driver.poll()] == done
            taken = [number for number in taken if number not in done]


def test_what_a_death_left_behind_an_unshown_used_descriptor_is_never_seen() -> None:
    """Both lanes write the used descriptors of a burst but the first one, which they show last."""
    with closing(Survivor(start=SIZE - 2)) as survivor:
        survivor.offer([3, 1, 4, 0])
        survivor.take()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PackedInflight, "link", lambda *_: None)  # the engine writes earlier
            patch.setattr(PackedQueue, "_show", _deadly(PackedQueue._show, before=True, lives=0))
            with pytest.raises(KilledError):
                survivor.give_back([3, 1, 4, 0])
        survivor.restart()
        assert survivor.take() == [3, 1, 4, 0]
        for number in (4, 0, 3, 1):
            survivor.give_back([number])
            assert [used.head for used in survivor.pair.driver.poll()] == [number]


def test_first_used_descriptor_of_a_burst_is_shown_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Survivor(start=SIZE - 2)) as survivor:
        survivor.offer([3, 1, 4])
        survivor.take()
        shown: list[list[int]] = []
        show, ring = PackedQueue._show, survivor.pair.driver.desc

        def look_and_show(queue: PackedQueue, index: int, flags: int) -> None:
            shown.append(ring["id"][[SIZE - 2, SIZE - 1, 0]].tolist())
            show(queue, index, flags)

        monkeypatch.setattr(PackedQueue, "_show", look_and_show)
        survivor.give_back([4, 3, 1])
        assert shown == [[4, 3, 1]]
        assert [used.head for used in survivor.pair.driver.poll()] == [4, 3, 1]


def _kill_recovery(survivor: Survivor, patch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    """Let a process die while it reads what the last one left."""
    point = data.draw(st.sampled_from(["_store_heads", "_store_places"]))
    before = data.draw(st.booleans())
    patch.setattr(
        PackedInflight, point, _deadly(getattr(PackedInflight, point), before=before, lives=0)
    )
    with pytest.raises(KilledError):
        survivor.restart()
    patch.undo()


def _see_used(survivor: Survivor, waiting: list[int]) -> None:
    for used in survivor.pair.driver.poll():
        waiting.remove(used.head)


def _work(
    survivor: Survivor, mine: list[int], waiting: list[int], data: st.DataObject
) -> list[int]:
    driver = survivor.pair.driver
    free = [number for number in range(SIZE) if number not in waiting]
    for number in data.draw(st.permutations(free))[: data.draw(st.integers(0, len(free)))]:
        length = data.draw(st.integers(1, 3))
        if sum(driver._lengths.values()) + length <= SIZE:
            survivor.offer([number], length)
            waiting.append(number)
    mine = mine + survivor.take(data.draw(st.integers(1, SIZE)))
    done = data.draw(st.permutations(mine))[: data.draw(st.integers(0, len(mine)))]
    if done:
        survivor.give_back(done)
    _see_used(survivor, waiting)
    return [number for number in mine if number not in done]


def _taken(survivor: Survivor) -> None:
    survivor.offer([4])
    survivor.offer([6], length=2)
    survivor.take()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "version 2"),
        ("features", 1, "features 0x1"),
        ("desc_num", 4, "record of 4 descriptors for a queue of 8"),
        ("desc_num", 0xFFFF, "record of 65535 descriptors"),
        ("used_idx", 8, "place 8/1"),
        ("old_used_idx", 9, "place 9/1"),
        ("used_wrap_counter", 2, "place 0/2"),
        ("old_free_head", 0, "descriptor|free"),
        ("old_free_head", 0xFFFF, "0 free descriptors"),
    ],
)
def test_a_record_of_another_kind_is_refused(field: str, value: int, message: str) -> None:
    with closing(Survivor()) as survivor:
        _taken(survivor)
        header, desc = survivor.record()
        header[field] = value
        if field == "old_free_head" and value == 0:
            desc["next"][2] = 0
        with pytest.raises(InflightError, match=message):
            survivor.restart()


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        (5, "next", 3),  # a loop in the free list
        (5, "next", 1),  # the free list leads into a chain
        (5, "next", 0x8000),  # it ends too early
        (1, "next", 0),  # a chain leads into another one
        (1, "next", 1),  # a chain is a loop
        (1, "next", 0xFFFF),  # it leads out of the record
        (1, "num", 0),
        (1, "num", 9),
        (1, "num", 0xFFFF),
        (1, "last", 1),
        (2, "id", 8),
        (2, "id", 4),
        (1, "inflight", 0),  # lost
        (2, "inflight", 1),  # in the middle of a chain
    ],
)
def test_corrupt_descriptors_are_refused(entry: int, field: str, value: int) -> None:
    with closing(Survivor()) as survivor:
        _taken(survivor)
        _, desc = survivor.record()
        desc[field][entry] = value
        with pytest.raises(InflightError):
            survivor.restart()


def test_a_split_rings_record_is_refused_or_harmless() -> None:
    with closing(Survivor()) as survivor:
        header, desc = survivor.record()
        header.view(np.uint8)[12:] = 0
        desc.view(np.uint8)[:] = 0
        with pytest.raises(InflightError):
            survivor.restart()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 32 + 32 * 8 - 1), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_any_bytes_are_refused_or_make_a_queue_that_works(changes: list[tuple[int, int]]) -> None:
    with closing(Survivor()) as survivor:
        _taken(survivor)
        part = survivor.part()
        raw = view_memory(part.address, part.size)
        for place, value in changes:
            raw[place] = value
        try:
            survivor.restart()
        except InflightError:
            return
        ids = survivor.take()
        if ids:
            survivor.give_back(ids)


def test_a_queue_larger_than_its_part_is_refused() -> None:
    with closing(PackedPair(2048)) as pair:
        described = make_inflight(1, SIZE, inflight_packed_bytes)
        area = InflightArea(described)
        os.close(described.fd)
        part = area.part(0, inflight_packed_bytes)
        config = vring_config(pair.driver, pair.memory)
        with pytest.raises(InflightError, match="no room for 2048 descriptors"):
            PackedQueue(config, pair.mapped, event_idx=False, inflight=part)
