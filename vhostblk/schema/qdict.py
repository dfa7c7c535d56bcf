# SPDX-License-Identifier: Apache-2.0
"""The order of QEMU's dictionaries (`qobject/qdict.c`), visible in file names and messages."""

from __future__ import annotations

_BUCKETS = 512
_MASK = 0xFFFF_FFFF


def bucket(name: str) -> int:
    """Return the hash bucket of a member; members of the same bucket are ordered newest first."""
    data = name.encode()
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345 & _MASK) % _BUCKETS
