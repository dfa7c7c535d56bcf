# SPDX-License-Identifier: Apache-2.0
"""Guest memory: tables of regions, and translation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptors import open_fds
from tests.virtqueue.reference import regions_of
from tests.virtqueue.support import ADJACENT, FAR, HOLE, KIB, Guest, map_memory
from vhostblk.virtqueue.config import RegionDescription
from vhostblk.virtqueue.errors import SetupError
from vhostblk.virtqueue.memory import GuestMemory, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4 * KIB


@pytest.fixture
def file() -> Iterator[int]:
    """A memory file of four pages."""
    fd = os.memfd_create("regions")
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


def region(fd: int, guest: int, size: int = PAGE, user: int = 0, offset: int = 0) -> MemoryRegion:
    return MemoryRegion.map(RegionDescription(guest, size, user or guest + (1 << 40), offset, fd))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:regions")


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.sampled_from([0, ADJACENT, HOLE, FAR, FAR + 64 * KIB, (1 << 64) - 1]).flatmap(
            lambda edge: st.integers(max(0, edge - 20), min(edge + 20, (1 << 64) - 1))
        ),
        st.integers(0, (1 << 64) - 1),
    ),
    st.one_of(st.integers(0, 40), st.integers(0, (1 << 64) - 1)),
)
def test_translation_agrees_with_plain_arithmetic(addr: int, length: int) -> None:
    guest = _translating
    (host,) = guest.mapped.translate(np.array([addr], np.uint64), np.array([length], np.uint64))
    expected = [
        r.host + addr - r.guest
        for r in regions_of(guest.mapped)
        if r.guest <= addr < r.guest + r.size and addr + length <= r.guest + r.size
    ]
    assert [int(host)] == (expected or [0])


_translating = Guest()


def test_empty_table_translates_nothing() -> None:
    memory = GuestMemory()
    assert memory.translate(np.zeros(3, np.uint64), np.ones(3, np.uint64)).tolist() == [0, 0, 0]
    with pytest.raises(SetupError):
        memory.translate_user(0, 1)


def test_view_is_the_guests_memory(guest: Guest) -> None:
    guest.memory.write(FAR + 3, b"hello")
    assert guest.mapped.view(guest.host(FAR + 3), 5).tobytes() == b"hello"


def test_ring_has_to_be_inside_one_region(guest: Guest) -> None:
    user = guest.memory.user_addr(ADJACENT)
    assert guest.mapped.translate_user(user - 8, 8) == guest.host(ADJACENT - 8)
    with pytest.raises(SetupError, match="not in guest memory"):
        guest.mapped.translate_user(user - 8, 9)


@pytest.mark.parametrize(("guest_addr", "user"), [(PAGE - 1, 1 << 41), (1 << 20, (1 << 40) + 1)])
def test_overlaps_are_refused(file: int, guest_addr: int, user: int) -> None:
    with pytest.raises(SetupError, match="overlap"):
        GuestMemory([region(file, 0), region(file, guest_addr, user=user)])


def test_adjacent_regions_do_not_overlap(file: int) -> None:
    assert len(GuestMemory([region(file, PAGE), region(file, 0)]).regions) == 2


def test_at_most_509_regions(file: int) -> None:
    regions = [region(file, PAGE * number) for number in range(510)]
    assert len(GuestMemory(regions[:509]).regions) == 509
    with pytest.raises(SetupError, match="509"):
        GuestMemory(regions)


def test_region_comes_and_goes(file: int) -> None:
    memory = GuestMemory([region(file, 0)])
    both = memory.with_region(region(file, 1 << 30))
    assert both.without_region(0, PAGE, 1 << 40).regions == both.regions[1:]


def test_region_is_removed_only_by_its_exact_description(file: int) -> None:
    memory = GuestMemory([region(file, 0)])
    with pytest.raises(SetupError, match="no memory region"):
        memory.without_region(0, PAGE - 1, 1 << 40)


def test_mapping_ends_with_the_last_table(file: int) -> None:
    memory = GuestMemory([region(file, 0), region(file, PAGE)])
    smaller = memory.without_region(0, PAGE, 1 << 40)
    assert mappings() == 2
    del memory
    assert mappings() == 1
    del smaller
    assert mappings() == 0


def test_core_dumps_leave_guest_memory_out(file: int) -> None:
    table = GuestMemory([region(file, 0, 4 * PAGE)])
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if "memfd:regions" in line)
    flags = next(line for line in lines if line.startswith("VmFlags:")).split()
    assert "dd" in flags
    del table


def test_offset_need_not_be_a_whole_page(file: int) -> None:
    os.pwrite(file, b"here", PAGE + 100)
    memory = GuestMemory([region(file, 0, size=50, offset=PAGE + 100)])
    assert memory.span[:4].tobytes() == b"here"


@pytest.mark.parametrize(
    ("size", "offset", "guest"),
    [
        (0, 0, 0),
        (5 * PAGE, 0, 0),
        (PAGE, 4 * PAGE, 0),
        (PAGE, (1 << 64) - PAGE, 0),
        (PAGE, 0, (1 << 64) - 1),
        ((1 << 64) - 1, 1, 0),
    ],
)
def test_senseless_regions_are_refused(file: int, size: int, offset: int, guest: int) -> None:
    with pytest.raises(SetupError, match="memory region"):
        region(file, guest, size, user=1, offset=offset)


def test_descriptor_that_is_no_file_is_refused() -> None:
    ends = os.pipe()
    try:
        with pytest.raises(SetupError, match="not a memory file"):
            region(ends[0], 0)
    finally:
        for end in ends:
            os.close(end)


def test_descriptor_that_is_read_only_is_refused(file: int) -> None:
    read_only = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    try:
        with pytest.raises(SetupError, match="mmap failed"):
            region(read_only, 0)
    finally:
        os.close(read_only)


def test_mapping_keeps_no_descriptor(guest: Guest) -> None:
    before = open_fds()
    mapped = map_memory(guest.memory)
    assert len(mapped.regions) == 3
    assert open_fds() <= before
