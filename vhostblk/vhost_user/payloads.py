# SPDX-License-Identifier: Apache-2.0
"""Checks and conversion of payloads that a `Struct` can't describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.vhost_user.errors import (
    ConfigAccessError,
    DescriptorError,
    FeatureError,
    MemoryTableError,
    PayloadSizeError,
    ProtocolError,
)
from vhostblk.vhost_user.layout import (
    INFLIGHT,
    MAX_CONFIG_SIZE,
    MAX_RING_SIZE,
    MAX_TABLE_REGIONS,
    MEMORY_HEADER,
    MEMORY_REGION,
    U64,
    ProtocolFeature,
)
from vhostblk.virtqueue.config import RegionDescription
from vhostblk.virtqueue.errors import InflightError

if TYPE_CHECKING:
    from vhostblk.vhost_user.codec import Message

_INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


def protocol_features(message: Message, offered: ProtocolFeature) -> ProtocolFeature:
    """Return the features of SET_PROTOCOL_FEATURES; raises FeatureError, ProtocolError."""
    (features,) = U64.unpack(message.payload)
    surplus = features & ~offered
    if surplus:
        raise FeatureError(f"protocol features {surplus:#x} were not offered")
    acknowledged = ProtocolFeature(features)
    inband = ProtocolFeature.INBAND_NOTIFICATIONS in acknowledged
    if inband and acknowledged & _INBAND_NEEDS != _INBAND_NEEDS:
        # "The back-end should close the connection."
        raise ProtocolError("INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK")
    return acknowledged


def memory_table(message: Message) -> list[RegionDescription]:
    """Return the regions of SET_MEM_TABLE, with their descriptors, which the caller owns."""
    payload = message.payload
    if len(payload) < MEMORY_HEADER.size:
        raise PayloadSizeError(f"payload of {len(payload)} bytes")
    count, _padding = MEMORY_HEADER.unpack_from(payload)
    if count > MAX_TABLE_REGIONS:
        raise MemoryTableError(f"{count} regions, more than {MAX_TABLE_REGIONS}")
    if len(payload) != MEMORY_HEADER.size + count * MEMORY_REGION.size:
        raise PayloadSizeError(f"payload of {len(payload)} bytes for {count} regions")
    if len(message.fds) != count:
        raise DescriptorError(f"{len(message.fds)} file descriptors for {count} regions")
    fields = MEMORY_REGION.iter_unpack(payload[MEMORY_HEADER.size :])
    return [
        RegionDescription(guest_addr, size, user_addr, mmap_offset, fd)
        for (guest_addr, size, user_addr, mmap_offset), fd in zip(
            fields, message.fds.take_all(), strict=True
        )
    ]


def inflight(message: Message, queues: int) -> tuple[int, int, int, int]:
    """Return size and offset of the mapping, number of queues (at most `queues`), queue size."""
    size, offset, num_queues, queue_size = INFLIGHT.unpack_from(message.payload)
    if not 1 <= num_queues <= queues:
        raise InflightError(f"{num_queues} queues of {queues}")
    if not 1 <= queue_size <= MAX_RING_SIZE:
        raise InflightError(f"queue size {queue_size}")
    return size, offset, num_queues, queue_size


def check_config_range(offset: int, size: int) -> None:
    """Raise ConfigAccessError if a range is empty or exceeds configuration space."""
    if not size or offset + size > MAX_CONFIG_SIZE:
        raise ConfigAccessError(
            f"{size} bytes at {offset}, outside the {MAX_CONFIG_SIZE} bytes of configuration"
        )
