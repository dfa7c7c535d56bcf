# SPDX-License-Identifier: Apache-2.0
"""The configuration space, byte by byte at the specification's offsets."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from vhostblk.virtio_blk.config import DeviceProperties, encode_config

DEVICE = DeviceProperties(
    size=123 << 20,
    logical_block_size=4096,
    num_queues=3,
    queue_size=128,
    discard_granularity=65536,
    optimal_transfer=1 << 20,
)


def field(layout: str, offset: int, device: DeviceProperties = DEVICE, cache: bool = True) -> int:
    (value,) = struct.unpack_from(layout, encode_config(device, write_cache=cache), offset)
    return int(value)


@pytest.mark.parametrize(
    ("name", "layout", "offset", "value"),
    [
        ("capacity", "<Q", 0, (123 << 20) // 512),
        ("size_max", "<I", 8, 0),
        ("seg_max", "<I", 12, 126),
        ("blk_size", "<I", 20, 4096),
        ("physical_block_exp", "<B", 24, 0),
        ("alignment_offset", "<B", 25, 0),
        ("min_io_size", "<H", 26, 1),
        ("opt_io_size", "<I", 28, 256),
        ("writeback", "<B", 32, 1),
        ("num_queues", "<H", 34, 3),
        ("max_discard_sectors", "<I", 36, 4194303),
        ("max_discard_seg", "<I", 40, 32),
        ("discard_sector_alignment", "<I", 44, 128),
        ("max_write_zeroes_sectors", "<I", 48, 4194303),
        ("max_write_zeroes_seg", "<I", 52, 32),
        ("write_zeroes_may_unmap", "<B", 56, 1),
    ],
)
def test_field(name: str, layout: str, offset: int, value: int) -> None:
    assert field(layout, offset) == value, name


def test_it_is_60_bytes_long() -> None:
    assert len(encode_config(DEVICE, write_cache=True)) == 60


def test_write_cache_off() -> None:
    assert field("<B", 32, cache=False) == 0


@pytest.mark.parametrize(("queue", "segments"), [(2, 1), (256, 254), (1024, 1022), (32768, 1022)])
def test_no_more_segments_than_a_chain_may_have(queue: int, segments: int) -> None:
    assert field("<I", 12, replace(DEVICE, queue_size=queue)) == segments
