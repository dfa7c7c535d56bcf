# SPDX-License-Identifier: Apache-2.0
"""The meaning of L2 entries (section "Cluster mapping"), for one entry and for arrays.

The unit is the subcluster: a cluster has one with standard L2 entries, and 32 with extended ones. A
cluster's entry has one 64-bit word or two. The second has the bits "allocated" and "reads as
zeroes" for each subcluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vhostblk.block.drivers.qcow2.layout import (
    ALL_SUBCLUSTERS,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO,
)
from vhostblk.block.drivers.qcow2.layout import OVERWRITE as OVERWRITE
from vhostblk.block.drivers.qcow2.layout import READ as READ
from vhostblk.block.drivers.qcow2.layout import READ_ZERO as READ_ZERO
from vhostblk.block.drivers.qcow2.layout import Kind as Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.layout import Geometry


class Entry(NamedTuple):
    """A decoded L2 entry; bit n of the masks is subcluster n."""

    word: int
    #: Offset of the host cluster; -1: none. For compressed data, the entry's word has the place.
    host: int
    copied: bool
    compressed: bool
    data: int
    zero: int
    valid: bool = True

    def kind(self, subcluster: int) -> Kind:
        """Return the type of a subcluster."""
        if not self.valid:
            return Kind.INVALID
        if self.compressed:
            return Kind.COMPRESSED
        if self.data >> subcluster & 1:
            return Kind.DATA
        return Kind.ZERO if self.zero >> subcluster & 1 else Kind.UNALLOCATED


def take_apart(geometry: Geometry, word: int, bitmap: int) -> Entry:
    """Decode an L2 entry. Its host cluster's offset is checked elsewhere."""
    full = ALL_SUBCLUSTERS if geometry.extended_l2 else 1
    copied = bool(word & COPIED)
    if word & COMPRESSED:
        valid = not geometry.external_data
        return Entry(word, -1, copied, True, 0, 0, valid)
    offset = word & OFFSET_MASK
    # In a data file, 0 is a valid offset.
    host = offset if offset or (geometry.external_data and copied) else -1
    if geometry.extended_l2:
        data, zero = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
        valid = not data & zero and (host >= 0 or not data)
        return Entry(word, host, copied, False, data, zero, valid)
    if word & ZERO:
        return Entry(word, host, copied, False, 0, full, geometry.version >= 3)
    return Entry(word, host, copied, False, full if host >= 0 else 0, 0)


def map_entries(
    geometry: Geometry,
    words: NDArray[Any],
    first_cluster: int,
    *,
    base: int,
    limit: int,
    has_backing: bool,
    forbidden: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """Convert L2 entries to extent map entries, one for each subcluster; 0: left to Python.

    `words` is a `>u8` array of L2 words. Host clusters must be below `limit` and not in the sorted
    offsets `forbidden`. `base` is the offset of the node's first byte in the map's file.
    """
    entries = words.astype(np.uint64)
    bitmaps = None
    if geometry.extended_l2:
        entries, bitmaps = entries[0::2], entries[1::2]
    offsets = entries & np.uint64(OFFSET_MASK)
    copied = (entries & np.uint64(COPIED)) != 0
    plain = (entries & np.uint64(COMPRESSED)) == 0
    here = offsets != 0
    if geometry.external_data:
        guest = np.arange(first_cluster, first_cluster + len(entries), dtype=np.uint64)
        guest <<= np.uint64(geometry.cluster_bits)
        here = (here | copied) & (offsets == guest)
    usable = here & plain & (offsets & np.uint64(geometry.cluster_size - 1) == 0)
    usable &= offsets < np.uint64(max(limit - geometry.cluster_size + 1, 0))
    if len(forbidden):
        places = np.searchsorted(forbidden, offsets.astype(np.int64))
        places[places == len(forbidden)] = 0
        usable &= forbidden[places] != offsets.astype(np.int64)
    flags = np.where(copied, np.uint64(READ | OVERWRITE), np.uint64(READ))
    data = np.where(usable, offsets + np.uint64(base) | flags, np.uint64(0))
    # Without a backing file, unallocated ranges read as zeroes.
    absent = plain & (entries & np.uint64(OFFSET_MASK) == 0) & ~(copied & geometry.external_data)
    if bitmaps is None:
        zero = (entries & np.uint64(ZERO)) != 0
        zeroes = plain & zero if geometry.version >= 3 else np.zeros(len(entries), bool)
        if not has_backing:
            zeroes |= absent & ~zero
        return np.where(zeroes, np.uint64(READ_ZERO), np.where(zero, np.uint64(0), data))
    return _map_subclusters(geometry, bitmaps, data, plain, absent, usable, has_backing)


def _map_subclusters(
    geometry: Geometry,
    bitmaps: NDArray[np.uint64],
    data: NDArray[np.uint64],
    plain: NDArray[np.bool_],
    absent: NDArray[np.bool_],
    usable: NDArray[np.bool_],
    has_backing: bool,
) -> NDArray[np.uint64]:
    """Do the same for extended entries; shape (clusters * 32,)."""
    bits = bitmaps.astype("<u8").view(np.uint8).reshape(-1, 8)
    spread = np.unpackbits(bits, axis=1, bitorder="little").astype(bool)
    alloc, zero = spread[:, :SUBCLUSTERS], spread[:, SUBCLUSTERS:]
    valid = plain & ~(alloc & zero).any(axis=1) & ~(absent & alloc.any(axis=1))
    steps = np.arange(SUBCLUSTERS, dtype=np.uint64) << np.uint64(geometry.subcluster_bits)
    placed = data[:, None] + steps[None, :]
    zeroes = zero if has_backing else zero | ~alloc
    result = np.where(alloc & usable[:, None], placed, np.uint64(0))
    result = np.where(zeroes, np.uint64(READ_ZERO), result)
    result[~valid] = 0
    flat: NDArray[np.uint64] = result.reshape(-1)
    return flat
