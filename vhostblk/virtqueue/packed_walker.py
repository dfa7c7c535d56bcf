# SPDX-License-Identifier: Apache-2.0
"""Walking chains of packed rings, a whole burst at once.

The descriptors of a chain follow each other in the ring, so `PackedQueue`, which copies them once,
has the chains already. Only indirect tables must be read, each of them once: one fancy index reads
all tables of a burst. Their entries follow each other, and only the flag WRITE has a meaning
(VIRTIO 1.3, 2.8.7). An INDIRECT descriptor is a chain by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.virtqueue.alike import batch_alike, read_tables
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.layout import DESC_F_INDIRECT, PACKED_DESC
from vhostblk.virtqueue.walker import MAX_CHAIN, translate_chains

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.batch import RequestBatch
    from vhostblk.virtqueue.memory import GuestMemory


def walk_packed(
    ids: NDArray[np.uint16],
    descriptors: NDArray[np.void],
    counts: NDArray[np.int64],
    memory: GuestMemory,
) -> RequestBatch:
    """Walk chains with the given ring descriptors, `counts[i]` of them for chain `i`.

    Never raises for data of a guest: broken chains get a fault.
    """
    chains = _alike(descriptors, counts, memory)
    batch = None if chains is None else batch_alike(ids, chains, memory)
    return walk_packed_any(ids, descriptors, counts, memory) if batch is None else batch


def _alike(
    descriptors: NDArray[np.void], counts: NDArray[np.int64], memory: GuestMemory
) -> NDArray[np.void] | None:
    """Return the chains, (chains, length), if all have the same length and kind."""
    length = int(counts[0])
    flags = descriptors["flags"]
    if int(np.bitwise_or.reduce(flags)) & DESC_F_INDIRECT:
        if len(descriptors) != len(counts) or not int(np.bitwise_and.reduce(flags)) & (
            DESC_F_INDIRECT
        ):
            return None
        return read_tables(descriptors, memory)
    if length > MAX_CHAIN or (counts != length).any():
        return None
    return descriptors.reshape(-1, length)


def walk_packed_any(
    ids: NDArray[np.uint16],
    descriptors: NDArray[np.void],
    counts: NDArray[np.int64],
    memory: GuestMemory,
) -> RequestBatch:
    """Walk chains like `walk_packed`, without the shortcut."""
    number = len(ids)
    begin = np.cumsum(counts) - counts
    lengths = np.minimum(counts, MAX_CHAIN)
    faults = np.zeros(number, np.uint8)
    faults[counts > MAX_CHAIN] = ChainFault.TOO_LONG

    jumps = np.flatnonzero((descriptors["flags"] & DESC_F_INDIRECT) != 0)
    tables = np.zeros(number, np.int64)
    inside = np.zeros(number, np.bool_)
    if len(jumps):
        # Of several violations in a chain, the last assigned one counts, which is the first one.
        owners = np.repeat(np.arange(number), counts)
        ordinals = np.full(number, MAX_CHAIN)
        ordinals[owners[jumps[::-1]]] = jumps[::-1] - begin[owners[jumps[::-1]]]
        nested = (counts > 1) & (ordinals < lengths)
        faults[nested] = ChainFault.INDIRECT_NESTED
        lengths[nested] = ordinals[nested]
        inside = (counts == 1) & (ordinals == 0)
        heads = descriptors[begin[inside]]
        faults[inside], lengths[inside], tables[inside] = _judge_tables(heads, memory)

    owners = np.repeat(np.arange(number), lengths)
    first = np.cumsum(lengths) - lengths
    ordinals = np.arange(len(owners)) - first[owners]
    flat = np.empty(len(owners), PACKED_DESC)
    indirect = inside[owners]
    direct = ~indirect
    flat[direct] = descriptors[begin[owners[direct]] + ordinals[direct]]
    if indirect.any():
        # Every byte of guest memory could be the start of a descriptor.
        places = memory.span.size - PACKED_DESC.itemsize + 1
        anywhere = np.ndarray((places,), PACKED_DESC, memory.span, 0, (1,))
        flat[indirect] = anywhere[
            tables[owners[indirect]] + ordinals[indirect] * PACKED_DESC.itemsize
        ]
    return translate_chains(ids, faults, lengths, flat, first, owners, memory)


def _judge_tables(
    descriptors: NDArray[np.void], memory: GuestMemory
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Check INDIRECT descriptors; return faults, entries and the tables' places in span."""
    size = PACKED_DESC.itemsize
    lengths = descriptors["len"].astype(np.uint64)
    tables = memory.translate(descriptors["addr"], lengths)
    faults = np.zeros(len(descriptors), np.uint8)
    faults[tables == 0] = ChainFault.INDIRECT_UNMAPPED
    bad_length = (lengths == 0) | (lengths % size != 0) | (lengths > MAX_CHAIN * size)
    faults[bad_length] = ChainFault.INDIRECT_LENGTH
    entries = np.where(faults == 0, lengths // np.uint64(size), 0).astype(np.int64)
    return faults, entries, tables.astype(np.int64) - memory.span_base
