# SPDX-License-Identifier: Apache-2.0
"""What the device offers: features and configuration space."""

from __future__ import annotations

import struct

import pytest

from tests.exports.support import make_backend
from tests.virtio_blk.support import HandNode
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtqueue.errors import SetupError

ALWAYS = (
    Feature.VERSION_1,
    Feature.RING_INDIRECT_DESC,
    Feature.RING_EVENT_IDX,
    Feature.RING_PACKED,
    Feature.SEG_MAX,
    Feature.BLK_SIZE,
    Feature.TOPOLOGY,
    Feature.FLUSH,
    Feature.CONFIG_WCE,
)


def test_features_of_a_writable_device() -> None:
    offered = make_backend().device_features
    expected = (*ALWAYS, Feature.DISCARD, Feature.WRITE_ZEROES)
    assert offered == sum(feature.mask for feature in expected)


def test_features_of_a_read_only_device() -> None:
    offered = make_backend(writable=False).device_features
    assert offered == sum(feature.mask for feature in (*ALWAYS, Feature.RO))


def test_several_queues_are_offered() -> None:
    device = make_backend(num_queues=4)
    assert device.device_features & Feature.MQ.mask
    assert device.num_queues == 4
    assert device.get_config(34, 2) == b"\4\0"


def test_config_space() -> None:
    config = make_backend(HandNode(1 << 20), logical_block_size=4096).get_config(0, 60)
    assert struct.unpack_from("<Q", config, 0) == (2048,)
    assert struct.unpack_from("<I", config, 12) == (126,)
    assert struct.unpack_from("<I", config, 20) == (4096,)
    assert config[32] == 1


def test_queue_size_option_decides_on_segments() -> None:
    config = make_backend(x_vhostblk_queue_size=256).get_config(12, 4)
    assert struct.unpack("<I", config) == (254,)


@pytest.mark.parametrize(("offset", "size"), [(0, 256), (59, 2), (60, 4), (255, 1)])
def test_config_space_past_its_end_is_zero(offset: int, size: int) -> None:
    device = make_backend()
    whole = device.get_config(0, 60) + bytes(256)
    assert device.get_config(offset, size) == whole[offset : offset + size]


def test_capacity_follows_the_disk() -> None:
    node = HandNode(1 << 20)
    device = make_backend(node)
    node.data.extend(bytes(1 << 20))
    assert struct.unpack("<Q", device.get_config(0, 8)) == (4096,)


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"\0"), (31, b"\0"), (32, b"\0\0"), (32, b"\2"), (33, b"\0"), (32, b"")],
)
def test_nothing_but_the_cache_mode_is_writable(offset: int, data: bytes) -> None:
    with pytest.raises(SetupError, match="not writable"):
        make_backend().set_config(offset, data)
