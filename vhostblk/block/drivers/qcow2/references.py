# SPDX-License-Identifier: Apache-2.0
"""Everything in an image that refers to host clusters, for `check`.

References are gathered as arrays of cluster numbers with weights, so memory and time go by what the
file really has: a table that is referred to many times is read once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.drivers.qcow2.layout import (
    ALL_SUBCLUSTERS,
    COMPRESSED,
    COMPRESSED_SECTOR,
    OFFSET_MASK,
    REFTABLE_OFFSET_MASK,
    SUBCLUSTERS,
)
from vhostblk.block.drivers.qcow2.transfer import read_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image

_COMPACT = 1 << 22
#: After so many snapshots others have a turn on the event loop.
_TURN = 256


def cluster_spans(bits: int, offsets: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return the clusters of ranges of bytes, in their order; empty ranges and offset 0 have none.

    Ranges end below 2**63.
    """
    starts, sizes = np.array(offsets, np.int64), np.array(lengths, np.int64)
    there = (starts != 0) & (sizes != 0)
    first, last = starts[there] >> bits, (starts + sizes - 1)[there] >> bits
    counts = last - first + 1
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(counts.sum(), dtype=np.int64)


class Tally:
    """How often each cluster is referred to."""

    def __init__(self) -> None:
        self._clusters: list[NDArray[np.int64]] = []
        self._weights: list[NDArray[np.int64]] = []
        self._pending = 0

    def add(self, clusters: NDArray[Any], weight: int | NDArray[Any] = 1) -> None:
        """Add references to clusters."""
        self._clusters.append(clusters.astype(np.int64))
        self._weights.append(np.broadcast_to(weight, clusters.shape).astype(np.int64))
        self._pending += len(clusters)
        if self._pending > _COMPACT:
            self.counts()

    def add_range(self, bits: int, offset: int, nbytes: int, weight: int = 1) -> None:
        """Add references to the clusters of a range of bytes."""
        if nbytes:
            last = offset + nbytes - 1 >> bits
            self.add(np.arange(offset >> bits, last + 1, dtype=np.int64), weight)

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return sorted cluster numbers and how often each is referred to."""
        if not self._clusters:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        clusters, places = np.unique(np.concatenate(self._clusters), return_inverse=True)
        weights = np.zeros(len(clusters), np.int64)
        np.add.at(weights, places, np.concatenate(self._weights))
        self._clusters, self._weights, self._pending = [clusters], [weights], 0
        return clusters, weights


async def gather_references(image: Image) -> tuple[Tally, int]:
    """Return all references, and how many entries refer to what can't be."""
    tally = Tally()
    header, geometry = image.header, image.geometry
    bits = geometry.cluster_bits
    tally.add_range(bits, 0, geometry.cluster_size)
    tally.add_range(bits, header.l1_offset, 8 * header.l1_size)
    tally.add_range(bits, header.reftable_offset, header.reftable_clusters << bits)
    wrong = _add_pointers(tally, image, image.refcounts.table, REFTABLE_OFFSET_MASK)
    tables = [image.tables.l1]
    if image.snapshots.entries:
        tally.add_range(bits, header.snapshots_offset, image.snapshots.table_bytes)
    snapshots = image.snapshots.entries
    sizes = [8 * each.l1_size for each in snapshots]
    tally.add(cluster_spans(bits, [each.l1_offset for each in snapshots], sizes))
    for number, snapshot in enumerate(snapshots, 1):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        raw = await read_array(image.file, snapshot.l1_offset, snapshot.l1_size, ">u8")
        tables.append(raw.astype(np.uint64))
    wrong += await add_tree(tally, image, np.concatenate(tables))
    wrong += await _add_bitmaps(tally, image)
    return tally, wrong


async def add_tree(tally: Tally, image: Image, l1_tables: NDArray[np.uint64]) -> int:
    """Add what L1 tables lead to; return how many entries refer to what can't be."""
    geometry = image.geometry
    wrong = _add_pointers(tally, image, l1_tables, OFFSET_MASK)
    offsets = l1_tables & np.uint64(OFFSET_MASK)
    offsets, repeats = np.unique(offsets[offsets != 0], return_counts=True)
    for offset, repeat in zip(offsets.tolist(), repeats.tolist(), strict=True):
        if offset & (geometry.cluster_size - 1) or offset >= image.file.node.size:
            continue
        words = await read_array(image.file, offset, geometry.cluster_size // 8, ">u8")
        wrong += add_clusters(tally, image, words.astype(np.uint64), repeat)
    return wrong


def _add_pointers(tally: Tally, image: Image, table: NDArray[np.uint64], mask: int) -> int:
    """Add references to tables; return how many are not aligned or not in the file."""
    offsets = table & np.uint64(mask)
    offsets = offsets[offsets != 0]
    good = (offsets & np.uint64(image.geometry.cluster_size - 1)) == 0
    good &= offsets < np.uint64(image.file.node.size)
    tally.add(offsets[good] >> np.uint64(image.geometry.cluster_bits))
    return int((~good).sum())


def add_clusters(tally: Tally, image: Image, words: NDArray[np.uint64], weight: int) -> int:
    """Add what L2 entries refer to; return how many refer to what can't be."""
    geometry = image.geometry
    wrong = 0
    if geometry.extended_l2:
        words, bitmaps = words[0::2], words[1::2]
        alloc = bitmaps & np.uint64(ALL_SUBCLUSTERS)
        wrong += int(((alloc & (bitmaps >> np.uint64(SUBCLUSTERS))) != 0).sum())
    if geometry.external_data:
        return wrong
    packed = (words & np.uint64(COMPRESSED)) != 0
    offsets = words[~packed] & np.uint64(OFFSET_MASK)
    offsets = offsets[offsets != 0]
    good = (offsets & np.uint64(geometry.cluster_size - 1)) == 0
    tally.add(offsets[good] >> np.uint64(geometry.cluster_bits), weight)
    wrong += int((~good).sum())
    shift = 62 - (geometry.cluster_bits - 8)
    compressed = words[packed]
    if len(compressed):
        starts = compressed & np.uint64((1 << shift) - 1)
        sectors = (compressed >> np.uint64(shift)) & np.uint64((1 << geometry.cluster_bits - 8) - 1)
        ends = (starts // np.uint64(COMPRESSED_SECTOR) + sectors + np.uint64(1)) * np.uint64(
            COMPRESSED_SECTOR
        )
        first = starts >> np.uint64(geometry.cluster_bits)
        last = (ends - np.uint64(1)) >> np.uint64(geometry.cluster_bits)
        for step in range(int((last - first).max()) + 1):
            tally.add((first + np.uint64(step))[first + np.uint64(step) <= last], weight)
    return wrong


async def _add_bitmaps(tally: Tally, image: Image) -> int:
    extension = image.header.bitmaps
    if extension is None:
        return 0
    bits = image.geometry.cluster_bits
    tally.add_range(bits, extension.offset, extension.size)
    wrong = 0
    for bitmap in image.bitmaps.entries:
        tally.add_range(bits, bitmap.table_offset, 8 * bitmap.table_size)
        table = await read_array(image.file, bitmap.table_offset, bitmap.table_size, ">u8")
        wrong += _add_pointers(tally, image, table.astype(np.uint64), OFFSET_MASK)
    return wrong
