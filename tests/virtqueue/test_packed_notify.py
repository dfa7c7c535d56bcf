# SPDX-License-Identifier: Apache-2.0
"""PackedQueue: who is notified when, with and without EVENT_IDX."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtqueue.packed_support import PackedPair
from vhostblk.virtqueue.layout import EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE

SIZE = 8
LAPS = 2 * SIZE


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, LAPS - 1),
    st.lists(st.integers(1, 2), min_size=1, max_size=4),
    st.integers(0, LAPS - 1),
)
def test_event_place_decides_as_specified(start: int, lengths: list[int], event: int) -> None:
    """2.8.10: notify if the used descriptor at that place, in that lap, is among these."""
    with closing(PackedPair(SIZE, start=start, event_idx=True)) as pair:
        for number, length in enumerate(lengths):
            pair.offer([number], length)
        assert len(pair.take()) == len(lengths)
        pair.driver.driver_event[:] = (pair.driver._encode(event), EVENT_DESC)
        passed = {(start + place) % LAPS for place in range(sum(lengths))}
        assert pair.give_back(range(len(lengths))) == (event in passed)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize(
    ("flags", "wanted"), [(EVENT_ENABLE, True), (EVENT_DISABLE, False), (3, True)]
)
def test_flags_decide(event_idx: bool, flags: int, wanted: bool) -> None:
    with closing(PackedPair(SIZE, event_idx=event_idx)) as pair:
        pair.offer([0])
        pair.take()
        pair.driver.driver_event[1] = flags
        assert pair.give_back([0]) is wanted


def test_a_place_without_event_idx_means_nothing() -> None:
    with closing(PackedPair(SIZE)) as pair:
        pair.offer([0])
        pair.take()
        pair.driver.driver_event[:] = (0x8005, EVENT_DESC)
        assert pair.give_back([0])


def test_a_place_outside_the_ring_does_no_harm() -> None:
    with closing(PackedPair(SIZE, event_idx=True)) as pair:
        pair.driver.driver_event[:] = (0x7FFF, EVENT_DESC)
        pair.offer([0])
        pair.take()
        pair.give_back([0])


def test_flag_asks_for_kicks_and_for_none() -> None:
    with closing(PackedPair(SIZE)) as pair:
        pair.device.disable_notifications()
        assert pair.driver.device_event[1] == EVENT_DISABLE
        pair.driver.make_available(0)
        assert not pair.driver.publish()
        pair.device.enable_notifications()
        assert pair.driver.device_event[1] == EVENT_ENABLE
        pair.driver.make_available(1)
        assert pair.driver.publish()


@pytest.mark.parametrize("start", range(LAPS))
def test_event_place_asks_for_the_next_kick_only(start: int) -> None:
    with closing(PackedPair(SIZE, start=start, event_idx=True)) as pair:
        pair.device.enable_notifications()
        assert pair.driver.device_event.tolist() == [pair.driver._encode(start), EVENT_DESC]
        pair.driver.make_available(0)
        assert pair.driver.publish()
        pair.driver.make_available(1)
        assert not pair.driver.publish()
        assert pair.take() == [0, 1]
        pair.device.disable_notifications()
        pair.driver.make_available(2)
        assert not pair.driver.publish()
