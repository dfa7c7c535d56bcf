# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the Python lane's walk and parsing of requests: `python -m fuzz walker CORPUS`.

An input is what a guest wrote: the descriptor table, indirect tables at the places that matter
(inside a region, at its end, across two), and headers. The walks, both of them, and the parser have
to find what the plain references of the tests find.
"""

from __future__ import annotations

import numpy as np

from tests.virtio_blk.reference import expected_request, requests_of
from tests.virtqueue.support import ADJACENT, FAR, KIB, LOW, Guest
from vhostblk.virtio_blk.request import parse
from vhostblk.virtqueue.walker import walk

QUEUE_SIZE = 8
TABLE_BYTES = 16 * QUEUE_SIZE

#: What follows the heads and the table: (guest address, bytes).
AREAS = ((FAR + KIB, 128), (FAR + 64 * KIB - 64, 64), (ADJACENT - 32, 64), (LOW + 4 * KIB, 96))

#: Where longer data would take the reference, which looks at every byte, too long.
_MANY_BYTES = 1 << 14

_guest = Guest(QUEUE_SIZE)


def one_input(data: bytes) -> None:
    """Try one input; raises AssertionError where references and product disagree."""
    if len(data) < 2:
        return
    # A device takes a head once, so these are different ones.
    order = np.random.default_rng(data[0]).permutation(QUEUE_SIZE)
    heads = order[: 1 + data[1] % QUEUE_SIZE].astype(np.uint16)
    rest = data[2:].ljust(TABLE_BYTES + sum(size for _, size in AREAS), b"\0")
    _guest.memory.write(_guest.table, rest[:TABLE_BYTES])
    position = TABLE_BYTES
    for addr, size in AREAS:
        low = max(min(size, ADJACENT - addr), 0) if addr < ADJACENT else size
        _guest.memory.write(addr, rest[position : position + low])
        if low < size:
            _guest.memory.write(ADJACENT, rest[position + low : position + size])
        position += size
    chains = _guest.check(heads.tolist())
    total = sum(segment.length for chain in chains for segment in chain.segments)
    if total > _MANY_BYTES:
        return
    batch = walk(heads, _guest.table_host(), QUEUE_SIZE, _guest.mapped)
    found = requests_of(parse(batch, 1 << 20, 512))
    assert found == [expected_request(chain, 1 << 20, 512) for chain in chains]


def seeds() -> dict[str, bytes]:
    """Return inputs to begin with: chains as drivers make them, direct and indirect."""
    from struct import pack

    def desc(addr: int, length: int, flags: int = 0, following: int = 0) -> bytes:
        return pack("<QIHH", addr, length, flags, following)

    header = AREAS[3][0]
    chain = (
        desc(header, 16, 1, 1) + desc(FAR + 8 * KIB, 512, 3, 2) + desc(header + 64, 1, 2)
    ).ljust(TABLE_BYTES, b"\0")
    tables = b"".join(
        desc(addr, 48, 4, 0) for addr, size in AREAS[:3] for _ in range(2 if size > 64 else 1)
    ).ljust(TABLE_BYTES, b"\0")
    inner = desc(header, 16, 1, 1) + desc(ADJACENT - 256, 512, 1, 2) + desc(header + 64, 1, 2)
    areas = inner.ljust(128, b"\0") + inner.ljust(64, b"\0") + inner.ljust(64, b"\0")
    headers = pack("<IIQ", 1, 0, 3).ljust(96, b"\0")
    return {
        "direct": bytes([0, 2]) + chain + areas + headers,
        "indirect": bytes([1, 7]) + tables + areas + headers,
        "mixed": bytes([2, 7]) + chain[:48] + tables[:80] + areas + headers,
    }
