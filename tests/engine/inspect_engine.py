# SPDX-License-Identifier: Apache-2.0
"""The engine's walker and parser, called directly and expressed as the reference does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.engine.inspection import inspection
from tests.engine.support import regions_of
from tests.virtqueue.reference import Chain, Segment
from vhostblk.block.io.iovec import address_of
from vhostblk.engine.layouts import IOVEC, REQUEST
from vhostblk.virtio_blk.request import BlockRequests
from vhostblk.virtqueue.errors import ChainFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.packed import PackedQueue

MAX_SEGMENTS = 1 << 16

_iovs = np.zeros(MAX_SEGMENTS, IOVEC)


def engine_chains(
    heads: Sequence[int], table_host: int, size: int, memory: GuestMemory
) -> list[Chain]:
    """Walk chains in C."""
    ffi, lib = inspection()
    regions, count = regions_of(ffi, memory)
    found = ffi.new("struct vb_inspected_chain[]", len(heads))
    total = lib.vb_inspect_chains(
        ffi.new("struct vb_ring *", {"desc": table_host, "size": size}),
        regions,
        count,
        len(heads),
        ffi.new("uint16_t[]", list(heads)),
        found,
        MAX_SEGMENTS,
        ffi.from_buffer("uint64_t *", _iovs),
    )
    assert total >= 0
    return [_chain(head, chain) for head, chain in zip(heads, found, strict=True)]


def engine_packed_chains(device: PackedQueue, limit: int) -> list[Chain] | None:
    """Take chains in C where a queue is, which stays there; None: the ring is broken."""
    ffi, lib = inspection()
    regions, count = regions_of(ffi, device.memory)
    chains = ffi.new("struct vb_inspected_chain[]", limit)
    ids, lengths = ffi.new("uint16_t[]", limit), ffi.new("uint32_t[]", limit)
    taken = lib.vb_inspect_packed(
        ffi.new("struct vb_ring *", device.addresses()),
        regions,
        count,
        limit,
        ids,
        lengths,
        chains,
        MAX_SEGMENTS,
        ffi.from_buffer("uint64_t *", _iovs),
    )
    if taken == -1:
        return None
    assert taken >= 0
    return [_chain(ids[number], chains[number]) for number in range(taken)]


class EnginePackedUse:
    """The engine's way of giving chains back, from where a packed queue is, which stays there."""

    def __init__(self, device: PackedQueue) -> None:
        ffi, self._lib = inspection()
        self._ring = ffi.new("struct vb_ring *", device.addresses())

    def use(self, head: int, length: int, count: int = 1) -> None:
        """Put a chain of `count` descriptors among those used; the driver does not see it yet."""
        self._lib.vb_inspect_packed_use(self._ring, head, length, count)

    def show(self) -> None:
        """Show the driver what was put there."""
        self._lib.vb_inspect_packed_show(self._ring)


def _chain(head: int, found: Any) -> Chain:
    rows = _iovs[found.first : found.first + found.count].tolist()
    segments = [
        Segment(base, length, place >= found.readable) for place, (base, length) in enumerate(rows)
    ]
    return Chain(head, ChainFault(found.fault), segments)


def engine_requests(
    heads: Sequence[int],
    table_host: int,
    queue_size: int,
    memory: GuestMemory,
    *,
    size: int,
    block: int,
) -> BlockRequests:
    """Walk and parse chains in C."""
    ffi, lib = inspection()
    regions, count = regions_of(ffi, memory)
    records = np.zeros(len(heads), REQUEST)
    total = lib.vb_inspect_requests(
        ffi.new("struct vb_ring *", {"desc": table_host, "size": queue_size}),
        regions,
        count,
        len(heads),
        ffi.new("uint16_t[]", list(heads)),
        size,
        block,
        ffi.from_buffer("struct vb_request *", records),
        MAX_SEGMENTS,
        ffi.from_buffer("uint64_t *", _iovs),
    )
    assert total >= 0
    iovs = _iovs[:total].copy()
    return BlockRequests(records, iovs, address_of(iovs), memory)
