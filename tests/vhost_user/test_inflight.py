# SPDX-License-Identifier: Apache-2.0
"""The memory for requests in flight: made, mapped, and refused."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from vhostblk.virtqueue.errors import InflightError, SetupError
from vhostblk.virtqueue.inflight_area import InflightArea, make_inflight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.virtqueue.config import InflightDescription


def bytes_for(queue_size: int) -> int:
    return 16 + 16 * queue_size


@contextmanager
def made(num_queues: int = 2, queue_size: int = 128) -> Iterator[InflightDescription]:
    described = make_inflight(num_queues, queue_size, bytes_for)
    try:
        yield described
    finally:
        os.close(described.fd)


def test_each_queue_has_a_part_of_its_own() -> None:
    with made() as described:
        area = InflightArea(described)
        first, second = area.part(0, bytes_for), area.part(1, bytes_for)
        assert first is not None
        assert second is not None
        assert second.address >= first.address + bytes_for(128)
        assert second.address + second.size <= first.address + described.mmap_size
        assert area.part(2, bytes_for) is None


def test_what_was_made_can_neither_shrink_nor_grow() -> None:
    with made() as described:
        for size in (0, described.mmap_size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(described.fd, size)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mmap_size": 0}, InflightError, "area of 0 bytes"),
        ({"mmap_size": 64}, InflightError, "area of 64 bytes for 2 queues of 128"),
        ({"queue_size": 32768}, InflightError, "area of"),
        ({"mmap_offset": 4096}, SetupError, "past the end of its file"),
        ({"mmap_size": (1 << 64) - 1}, SetupError, "overflows"),
        ({"mmap_offset": (1 << 64) - 1}, SetupError, "overflows"),
        ({"num_queues": 1, "mmap_offset": 4, "mmap_size": 8192}, InflightError, "multiple of 8"),
    ],
)
def test_areas_that_make_no_sense(
    change: dict[str, int], error: type[SetupError], message: str
) -> None:
    with made() as described, pytest.raises(error, match=message):
        InflightArea(replace(described, **change)).check(bytes_for)


def test_a_descriptor_that_is_no_memory() -> None:
    reader, writer = os.pipe()
    try:
        with made() as described, pytest.raises(SetupError, match="not a memory file"):
            InflightArea(replace(described, fd=reader))
    finally:
        os.close(reader)
        os.close(writer)
