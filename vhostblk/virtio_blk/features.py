# SPDX-License-Identifier: Apache-2.0
"""Virtio feature bits (VIRTIO 1.3, sections 5.2.3 and 6)."""

from __future__ import annotations

from enum import IntEnum


class Feature(IntEnum):
    """The value is the bit's number."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VERSION_1 = 32
    RING_PACKED = 34

    @property
    def mask(self) -> int:
        """The bit itself."""
        return 1 << self
