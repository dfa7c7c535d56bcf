# SPDX-License-Identifier: Apache-2.0
"""SplitQueue: who is notified when, with and without EVENT_IDX."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.support import QueuePair

SIZE = 8


def need_event(event: int, new: int, old: int) -> bool:
    """The specification's formula (VIRTIO 1.3, 2.7.10), in its own 16-bit arithmetic."""
    return (new - event - 1) % 65536 < (new - old) % 65536


def push_decides(start: int, count: int, event: int) -> bool:
    with closing(QueuePair(SIZE, start=start, event_idx=True)) as pair:
        pair.offer(range(count))
        pair.take()
        pair.driver.used_event[0] = event
        return pair.give_back(range(count))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 65535), st.integers(1, SIZE), st.integers(-12, 12))
def test_event_index_decides_as_specified(start: int, count: int, delta: int) -> None:
    event = (start + delta) & 0xFFFF
    assert push_decides(start, count, event) == need_event(event, start + count, start)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 65535), st.integers(1, SIZE), st.integers(0, 65535))
def test_event_index_anywhere_decides_as_specified(start: int, count: int, event: int) -> None:
    assert push_decides(start, count, event) == need_event(event, start + count, start)


def test_the_whole_circle_is_decided_as_specified() -> None:
    with closing(QueuePair(SIZE, event_idx=True)) as pair:
        index, turn = 0, 0
        while index < 65536 + 2 * SIZE:
            count, event = turn % SIZE + 1, index - 2 + turn % (SIZE + 3)
            pair.driver.used_event[0] = event & 0xFFFF
            assert pair.give_back(range(count)) == need_event(event, index + count, index)
            index, turn = index + count, turn + 1


def test_a_long_queue_can_pass_half_the_circle_at_once() -> None:
    with closing(QueuePair(32768, start=40000, event_idx=True)) as pair:
        pair.offer(range(32768))
        pair.take()
        pair.driver.used_event[0] = 39999
        assert not pair.give_back(range(32768))
        pair.offer(range(32768))
        pair.take()
        pair.driver.used_event[0] = (40000 + 2 * 32768 - 1) & 0xFFFF
        assert pair.give_back(range(32768))


@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (1, False), (2, True), (3, False)])
def test_without_event_idx_the_flag_decides(pair: QueuePair, flags: int, wanted: bool) -> None:
    pair.offer([0])
    pair.take()
    pair.driver.avail_flags[0] = flags
    assert pair.give_back([0]) is wanted


def test_flag_asks_for_kicks_and_for_none(pair: QueuePair) -> None:
    pair.device.disable_notifications()
    assert int(pair.driver.used_flags[0]) == 1
    pair.device.enable_notifications()
    assert int(pair.driver.used_flags[0]) == 0


def test_event_index_asks_for_the_next_kick() -> None:
    with closing(QueuePair(start=65535, event_idx=True)) as pair:
        pair.driver.make_available(0)
        assert pair.driver.publish()
        pair.take()
        pair.device.enable_notifications()
        assert int(pair.driver.avail_event[0]) == 0
        pair.driver.make_available(1)
        assert pair.driver.publish()


def test_event_index_left_behind_asks_for_no_kick() -> None:
    with closing(QueuePair(event_idx=True)) as pair:
        pair.device.enable_notifications()
        pair.offer([0])
        pair.take()
        pair.device.disable_notifications()
        pair.driver.make_available(1)
        assert not pair.driver.publish()
        assert int(pair.driver.used_flags[0]) == 0


def test_has_available_sees_what_came_meanwhile(pair: QueuePair) -> None:
    assert not pair.device.has_available()
    pair.offer([4])
    assert pair.device.has_available()
    pair.take()
    assert not pair.device.has_available()
