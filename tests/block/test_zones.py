# SPDX-License-Identifier: Apache-2.0
"""Emulated zones, held against a plain model of what VIRTIO 1.3, 5.2.6 says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.block.zones import (
    EmulatedZones,
    Zone,
    ZonedLimits,
    ZoneError,
    ZoneFault,
    ZoneModel,
    ZoneOp,
    ZoneState,
    ZoneType,
)

S = ZoneState
UNIT = 512
#: The last of the five zones is shorter, and shorter than the others' capacity.
ZONE, CAPACITY, SIZE = 8 * UNIT, 6 * UNIT, 36 * UNIT
CONVENTIONAL = 1


def make(**more: int) -> EmulatedZones:
    limits = ZonedLimits(
        ZoneModel.HOST_MANAGED,
        zone_size=ZONE,
        max_open=more.get("max_open", 0),
        max_active=more.get("max_active", 0),
        max_append=more.get("max_append", 4 * UNIT),
        write_granularity=more.get("granularity", UNIT),
    )
    worn = {more["worn"]: S.READ_ONLY} if "worn" in more else None
    return EmulatedZones(SIZE, limits, capacity=CAPACITY, conventional=CONVENTIONAL, worn=worn)


def states(zones: EmulatedZones) -> list[ZoneState]:
    return [zone.state for zone in zones.report(0, 99)]


def fault_of(call: object, *arguments: object) -> ZoneFault | None:
    assert callable(call)
    try:
        call(*arguments)
    except ZoneError as error:
        return error.fault
    return None


def test_a_report_of_fresh_zones() -> None:
    required, empty = ZoneType.SEQUENTIAL_REQUIRED, S.EMPTY
    assert make().report(ZONE - 1, 2) == [
        Zone(0, ZONE, ZONE, 0, ZoneType.CONVENTIONAL, S.NOT_WP),
        Zone(ZONE, ZONE, CAPACITY, ZONE, required, empty),
    ]
    assert make().report(4 * ZONE + 1, 9) == [
        Zone(4 * ZONE, 4 * UNIT, 4 * UNIT, 4 * ZONE, required, empty)
    ]
    assert make().report(SIZE, 9) == []


def test_the_life_of_a_zone() -> None:
    zones = make()
    zones.write(ZONE, UNIT)
    assert states(zones)[1] is S.IMPLICIT_OPEN
    zones.manage(ZoneOp.OPEN, ZONE, ZONE)
    assert states(zones)[1] is S.EXPLICIT_OPEN
    zones.manage(ZoneOp.CLOSE, ZONE, ZONE)
    assert states(zones)[1] is S.CLOSED
    assert zones.append(ZONE, 2 * UNIT) == ZONE + UNIT
    zones.write(ZONE + 3 * UNIT, 3 * UNIT)
    assert states(zones)[1] is S.FULL
    zones.manage(ZoneOp.RESET, ZONE, ZONE)
    assert zones.report(ZONE, 1) == make().report(ZONE, 1)


def test_a_zone_that_is_opened_and_closed_is_empty() -> None:
    zones = make()
    zones.manage(ZoneOp.OPEN, ZONE, ZONE)
    zones.manage(ZoneOp.CLOSE, ZONE, ZONE)
    assert states(zones)[1] is S.EMPTY


@pytest.mark.parametrize(
    ("offset", "length", "fault"),
    [
        (0, 2 * UNIT, None),  # conventional zones are written anywhere
        (3 * UNIT, UNIT, None),
        (7 * UNIT, 2 * UNIT, ZoneFault.INVALID),  # into a sequential one
        (ZONE + UNIT, UNIT, ZoneFault.UNALIGNED),
        (ZONE, CAPACITY + UNIT, ZoneFault.INVALID),
        (ZONE, ZONE + UNIT, ZoneFault.INVALID),
        (ZONE, 0, None),
        (4 * ZONE, 4 * UNIT, None),
    ],
)
def test_writes(offset: int, length: int, fault: ZoneFault | None) -> None:
    zones = make()
    assert fault_of(zones.write, offset, length) is fault
    if fault is not None or not length:
        assert states(zones) == states(make())


def test_the_granularity_of_writes() -> None:
    zones = make(granularity=2 * UNIT)
    assert fault_of(zones.write, ZONE, UNIT) is ZoneFault.UNALIGNED
    zones.write(ZONE, 2 * UNIT)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, UNIT), (ZONE + UNIT, UNIT), (ZONE, 5 * UNIT), (3 * ZONE, UNIT)],
    ids=["conventional", "not the start", "too long", "read-only"],
)
def test_appends_that_are_refused(offset: int, length: int) -> None:
    assert fault_of(make(worn=3).append, offset, length) is ZoneFault.INVALID


def test_an_append_that_does_not_fit_any_more() -> None:
    zones = make()
    zones.append(ZONE, 4 * UNIT)
    assert fault_of(zones.append, ZONE, 3 * UNIT) is ZoneFault.INVALID
    assert zones.append(ZONE, 2 * UNIT) == ZONE + 4 * UNIT
    assert fault_of(zones.append, ZONE, UNIT) is ZoneFault.INVALID


def test_an_implicitly_open_zone_gives_way() -> None:
    zones = make(max_open=2)
    zones.write(ZONE, UNIT)
    zones.write(2 * ZONE, UNIT)
    zones.write(3 * ZONE, UNIT)
    assert states(zones)[1:4] == [S.CLOSED, S.IMPLICIT_OPEN, S.IMPLICIT_OPEN]
    zones.manage(ZoneOp.OPEN, ZONE, 2 * ZONE)
    assert states(zones)[1:4] == [S.EXPLICIT_OPEN, S.EXPLICIT_OPEN, S.CLOSED]
    assert fault_of(zones.write, 3 * ZONE + UNIT, UNIT) is ZoneFault.OPEN_RESOURCES
    assert fault_of(zones.manage, ZoneOp.OPEN, 3 * ZONE, ZONE) is ZoneFault.OPEN_RESOURCES


def test_active_zones_are_limited_before_open_ones() -> None:
    zones = make(max_open=1, max_active=1)
    zones.manage(ZoneOp.OPEN, ZONE, ZONE)
    assert fault_of(zones.write, 2 * ZONE, UNIT) is ZoneFault.ACTIVE_RESOURCES
    zones.manage(ZoneOp.FINISH, 2 * ZONE, ZONE)  # takes none
    zones.manage(ZoneOp.FINISH, ZONE, ZONE)
    zones.write(3 * ZONE, UNIT)


def test_reset_all_leaves_alone_what_has_failed() -> None:
    limits = ZonedLimits(ZoneModel.HOST_MANAGED, ZONE)
    worn = {1: S.READ_ONLY, 2: S.OFFLINE}
    zones = EmulatedZones(SIZE, limits, capacity=ZONE, worn=worn)
    zones.write(0, ZONE)
    zones.manage(ZoneOp.RESET_ALL, 0, SIZE)
    assert states(zones) == [S.EMPTY, S.READ_ONLY, S.OFFLINE, S.EMPTY, S.EMPTY]
    for number in worn:
        for op in (ZoneOp.OPEN, ZoneOp.CLOSE, ZoneOp.FINISH, ZoneOp.RESET):
            assert fault_of(zones.manage, op, number * ZONE, ZONE) is ZoneFault.INVALID
    zones.check_read(ZONE, ZONE)
    assert fault_of(zones.check_read, ZONE, ZONE + UNIT) is ZoneFault.INVALID


@pytest.mark.parametrize(
    ("offset", "length"), [(ZONE + UNIT, ZONE), (ZONE, UNIT), (ZONE, 0), (0, ZONE), (0, SIZE)]
)
def test_ranges_that_are_no_sequential_zones(offset: int, length: int) -> None:
    assert fault_of(make().manage, ZoneOp.RESET, offset, length) is ZoneFault.INVALID


def test_a_range_may_end_with_the_disk() -> None:
    zones = make()
    zones.manage(ZoneOp.FINISH, 3 * ZONE, SIZE - 3 * ZONE)
    assert states(zones)[3:] == [S.FULL, S.FULL]


@dataclass
class PlainZone:
    """One sequential zone, as the specification tells its story."""

    capacity: int
    state: ZoneState = S.EMPTY
    written: int = 0
    #: When it was opened, of those that may give way.
    opened: int = 0


class PlainZones:
    """A model without any bookkeeping: resources are counted each time."""

    def __init__(self, max_open: int, max_active: int) -> None:
        self.max_open, self.max_active = max_open, max_active
        lengths = [ZONE, ZONE, ZONE, ZONE, SIZE % ZONE]
        self.zones = [PlainZone(min(CAPACITY, length)) for length in lengths]
        self.clock = 0

    def count(self, *wanted: ZoneState) -> int:
        return sum(zone.state in wanted for zone in self.zones[CONVENTIONAL:])

    def acquire(self, zone: PlainZone) -> ZoneFault | None:
        """Make room for a zone that is to be open."""
        is_open = (S.IMPLICIT_OPEN, S.EXPLICIT_OPEN)
        if zone.state in is_open:
            return None
        if zone.state is S.EMPTY and self.count(*is_open, S.CLOSED) == self.max_active > 0:
            return ZoneFault.ACTIVE_RESOURCES
        if self.count(*is_open) == self.max_open > 0:
            giving = [z for z in self.zones if z.state is S.IMPLICIT_OPEN]
            if not giving:
                return ZoneFault.OPEN_RESOURCES
            min(giving, key=lambda z: z.opened).state = S.CLOSED
        return None

    def write(self, number: int, at: int | None, length: int) -> ZoneFault | None:
        """Write at a place in a zone (None: append)."""
        zone = self.zones[number]
        if zone.state is S.FULL:
            return ZoneFault.INVALID
        if at is not None and at != zone.written:
            return ZoneFault.UNALIGNED
        if zone.written + length > zone.capacity:
            return ZoneFault.INVALID
        if fault := self.acquire(zone):
            return fault
        if zone.state is not S.EXPLICIT_OPEN:
            if zone.state is not S.IMPLICIT_OPEN:
                self.clock += 1
                zone.opened = self.clock
            zone.state = S.IMPLICIT_OPEN
        zone.written += length
        if zone.written == zone.capacity:
            zone.state = S.FULL
        return None

    def manage(self, op: ZoneOp, number: int) -> ZoneFault | None:
        zone = self.zones[number]
        if op is ZoneOp.OPEN:
            if zone.state is S.FULL:
                return ZoneFault.INVALID
            if fault := self.acquire(zone):
                return fault
            zone.state = S.EXPLICIT_OPEN
        elif op is ZoneOp.CLOSE:
            if zone.state in (S.EMPTY, S.FULL):
                return ZoneFault.INVALID
            zone.state = S.CLOSED if zone.written else S.EMPTY
        elif op is ZoneOp.FINISH:
            zone.state = S.FULL
        else:
            zone.state, zone.written = S.EMPTY, 0
        return None


_numbers = st.integers(CONVENTIONAL, 4)
_writes = st.tuples(
    st.just("write"), _numbers, st.one_of(st.just(-1), st.integers(0, 6)), st.integers(1, 4)
)
_appends = st.tuples(st.just("append"), _numbers, st.just(0), st.integers(1, 4))
_ops = st.tuples(
    st.sampled_from([op for op in ZoneOp if op is not ZoneOp.RESET_ALL]),
    _numbers,
    st.just(0),
    st.just(0),
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.one_of(_writes, _appends, _ops), max_size=40),
)
def test_any_sequence_of_requests(
    max_open: int, max_active: int, steps: list[tuple[str | ZoneOp, int, int, int]]
) -> None:
    zones = make(max_open=max_open, max_active=max_active)
    plain = PlainZones(max_open, max_active)
    for what, number, at, length in steps:
        start, zone = number * ZONE, plain.zones[number]
        if isinstance(what, ZoneOp):
            end = min(start + ZONE, SIZE)
            found = fault_of(zones.manage, what, start, end - start)
            expected = plain.manage(what, number)
        elif what == "append":
            found = fault_of(zones.append, start, length * UNIT)
            expected = plain.write(number, None, length * UNIT)
        else:
            place = zone.written if at < 0 else at * UNIT
            reaches = start + place + length * UNIT > min(start + ZONE, SIZE)
            if place >= zone.capacity or (reaches and number == 4):
                continue  # past the disk, or in nobody's capacity: other tests
            found = fault_of(zones.write, start + place, length * UNIT)
            expected = plain.write(number, place, length * UNIT)
            if reaches:
                expected = ZoneFault.INVALID
        assert found is expected, (what, number)
        report = zones.report(ZONE, 99)
        assert [zone.state for zone in report] == [zone.state for zone in plain.zones[1:]]
        for described, modelled in zip(report, plain.zones[1:], strict=True):
            assert described.write_pointer - described.start == modelled.written
