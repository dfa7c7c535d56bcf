# SPDX-License-Identifier: Apache-2.0
"""All references to host clusters in an image, read table by table.

A table with many references is read once. Parts past the end of the file are not read: they are
zeroes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhostblk.block.drivers.qcow2.layout import (
    ALL_SUBCLUSTERS,
    COMPRESSED,
    COMPRESSED_SECTOR,
    OFFSET_MASK,
    REFTABLE_OFFSET_MASK,
    SUBCLUSTERS,
)
from vhostblk.block.drivers.qcow2.references import References
from vhostblk.block.drivers.qcow2.spans import spans
from vhostblk.block.drivers.qcow2.transfer import PIECE, pieces, read_array

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.pace import Pace
    from vhostblk.block.drivers.qcow2.spans import Spans

#: Bytes of L2 tables to read together.
_BYTES = 256 << 10


@dataclass
class Faults:
    """The numbers of entries with invalid offsets, and with offsets past the file's end."""

    wrong: int = 0
    past_end: int = 0


class Tables(NamedTuple):
    """L2 tables from adjacent clusters, read together."""

    clusters: NDArray[np.int64]
    #: The number of references to each table.
    counts: NDArray[np.int64]
    #: The words of each table, in native byte order.
    words: NDArray[np.uint64]

    def entries(self, image: Image) -> NDArray[np.uint64]:
        """Return a view of the words with offsets and flags."""
        return self.words[:, ::2] if image.geometry.extended_l2 else self.words


async def gather_references(image: Image, pace: Pace) -> tuple[References, Faults]:
    """Return all references, and the faults found."""
    references, faults, tables = References.of_file(image), Faults(), References(0)
    references.add_ranges(_ranges(image, faults))
    for part in pieces(image.refcounts.table):
        references.add(_targets(image, part, REFTABLE_OFFSET_MASK, 1, faults))
    _add_l1(tables, image, image.tables.l1, faults)
    async for part, count in read_snapshot_tables(image, pace):
        tables.add(_targets(image, part, OFFSET_MASK, count, faults), count)
        await _tidy(image, tables)
    await _add_tables(references, image, tables, faults, pace)
    async for part, count in _read_ranges(image, _in_file(image, _bitmap_tables(image)), pace):
        references.add(_targets(image, part, OFFSET_MASK, count, faults), count)
        await _tidy(image, references)
    return references, faults


async def gather_tree(image: Image, l1: NDArray[np.uint64], pace: Pace) -> tuple[References, int]:
    """Return the references of an L1 table and its L2 tables, and the number of invalid ones.

    The L1 table's own clusters are not included.
    """
    references, faults, tables = References.of_file(image), Faults(), References(0)
    _add_l1(tables, image, l1, faults)
    await _add_tables(references, image, tables, faults, pace)
    return references, faults.wrong


def add_range(references: References, image: Image, offset: int, nbytes: int) -> None:
    """Add references to the clusters of a range of bytes in the file."""
    bits = image.geometry.cluster_bits
    if nbytes:
        references.add(np.arange(offset >> bits, (offset + nbytes - 1 >> bits) + 1))


def snapshot_tables(image: Image) -> list[tuple[int, int]]:
    """Return offset and length of each snapshot's L1 table."""
    return [
        (each.l1_offset, 8 * each.l1_size) for each in image.snapshots.entries if each.l1_offset
    ]


def _bitmap_tables(image: Image) -> list[tuple[int, int]]:
    """Return offset and length of each bitmap's table."""
    if image.header.bitmaps is None:
        return []
    return [(each.table_offset, 8 * each.table_size) for each in image.bitmaps.entries]


def _ranges(image: Image, faults: Faults) -> Spans:
    """Return the clusters of all contiguous structures.

    Of the tables of snapshots and bitmaps, only the parts inside the file count.
    """
    header, geometry = image.header, image.geometry
    own = [
        (0, geometry.cluster_size),
        (header.l1_offset, 8 * header.l1_size),
        (header.reftable_offset, header.reftable_clusters << geometry.cluster_bits),
    ]
    if image.snapshots.entries:
        own.append((header.snapshots_offset, image.snapshots.table_bytes))
    if header.bitmaps is not None:
        own.append((header.bitmaps.offset, header.bitmaps.size))
    others = [*snapshot_tables(image), *_bitmap_tables(image)]
    end = geometry.clusters(image.file.node.size) << geometry.cluster_bits
    faults.past_end += sum(offset + length > end for offset, length in own + others if length)
    there = [(offset, min(length, end - offset)) for offset, length in others if offset < end]
    return clusters_of(geometry.cluster_bits, own + there)


def clusters_of(bits: int, ranges: Sequence[tuple[int, int]]) -> Spans:
    """Return the clusters of ranges of bytes, given by offset and length."""
    there = [each for each in ranges if each[1]]
    firsts = np.array([offset >> bits for offset, _ in there], np.int64)
    lasts = np.array([offset + length - 1 >> bits for offset, length in there], np.int64)
    return spans(firsts, lasts + 1)


def _in_file(image: Image, ranges: Sequence[tuple[int, int]]) -> Spans:
    """Return the parts of ranges of bytes, given by offset and length, that are in the file."""
    starts = np.array([offset for offset, _ in ranges], np.int64)
    lengths = np.array([length for _, length in ranges], np.int64)
    return spans(starts, np.minimum(starts + lengths, image.file.node.size & ~7))


def read_snapshot_tables(image: Image, pace: Pace) -> AsyncIterator[tuple[NDArray[np.uint64], int]]:
    """Read words of the snapshots' L1 tables; yield them and the number of their tables."""
    return _read_ranges(image, _in_file(image, snapshot_tables(image)), pace)


async def _read_ranges(
    image: Image, ranges: Spans, pace: Pace
) -> AsyncIterator[tuple[NDArray[np.uint64], int]]:
    """Read words from ranges of bytes; yield them and the number of ranges that contain them."""
    pace.begin("reading the top-level tables", int((ranges.stops - ranges.starts).sum()))
    for start, stop, count in zip(*(each.tolist() for each in ranges), strict=True):
        for offset in range(start, stop, 8 * PIECE):
            words = min(stop - offset >> 3, PIECE)
            raw = await read_array(image.file, offset, words, ">u8")
            if raw.any():
                yield raw.astype(np.uint64), count
            await pace.turn(8 * words)


def _add_l1(tables: References, image: Image, l1: NDArray[np.uint64], faults: Faults) -> None:
    for part in pieces(l1):
        tables.add(_targets(image, part, OFFSET_MASK, 1, faults))


def _targets(
    image: Image, words: NDArray[np.uint64], mask: int, count: int, faults: Faults
) -> NDArray[np.int64]:
    """Return the clusters of tables that words refer to, without invalid offsets.

    An invalid offset is unaligned or outside the file. Each counts `count` times.
    """
    offsets = words & np.uint64(mask)
    offsets = offsets[offsets != 0]
    good = (offsets & np.uint64(image.geometry.cluster_size - 1)) == 0
    good &= offsets < np.uint64(image.file.node.size)
    faults.wrong += count * int((~good).sum())
    found: NDArray[np.int64] = offsets[good] >> np.uint64(image.geometry.cluster_bits)
    return found.astype(np.int64)


async def _tidy(image: Image, references: References) -> None:
    if references.untidy:
        await image.in_thread(references.tidy)


async def _add_tables(
    references: References, image: Image, tables: References, faults: Faults, pace: Pace
) -> None:
    """Add L2 tables and the references in them."""
    clusters, counts = tables.sorted()
    for start in range(0, len(clusters), PIECE):
        references.add(clusters[start : start + PIECE], counts[start : start + PIECE])
        await pace.turn(0)
    async for read in read_tables(image, clusters, counts, pace):
        add_entries(references, image, read, faults)
        await _tidy(image, references)


async def read_tables(
    image: Image, clusters: NDArray[np.int64], counts: NDArray[np.int64], pace: Pace
) -> AsyncIterator[Tables]:
    """Read L2 tables, whose clusters are sorted, with their counts."""
    geometry = image.geometry
    bits, most = geometry.cluster_bits, max(_BYTES >> geometry.cluster_bits, 1)
    pace.begin("reading L2 tables", len(clusters))
    place = 0
    while place < len(clusters):
        some = clusters[place : place + most]
        gaps = np.flatnonzero(np.diff(some) != 1)
        length = int(gaps[0]) + 1 if len(gaps) else len(some)
        raw = await read_array(image.file, int(some[0]) << bits, length << bits - 3, ">u8")
        words = raw.astype(np.uint64).reshape(length, -1)
        yield Tables(some[:length], counts[place : place + length], words)
        place += length
        await pace.turn(length)


def add_entries(references: References, image: Image, tables: Tables, faults: Faults) -> None:
    """Add the references in the entries of L2 tables."""
    geometry, entries = image.geometry, tables.entries(image)
    if geometry.extended_l2:
        bitmaps = tables.words[:, 1::2]
        alloc = bitmaps & np.uint64(ALL_SUBCLUSTERS)
        faults.wrong += int(((alloc & (bitmaps >> np.uint64(SUBCLUSTERS))) != 0).sum())
    if geometry.external_data:
        return
    packed = (entries & np.uint64(COMPRESSED)) != 0
    offsets = entries & np.uint64(OFFSET_MASK)
    if packed.any():
        offsets[packed] = 0
        _add_compressed(references, image, tables, packed, faults)
    there = offsets != 0
    counts = _weights(tables, there)
    offsets = offsets[there]
    good = (offsets & np.uint64(geometry.cluster_size - 1)) == 0
    if not good.all():
        faults.wrong += int((~good).sum())
        counts = counts if isinstance(counts, int) else counts[good]
        offsets = offsets[good]
    _add(references, image, offsets >> np.uint64(geometry.cluster_bits), counts, faults)


def _weights(tables: Tables, chosen: NDArray[np.bool_]) -> int | NDArray[np.int64]:
    """Return the number of references to the table of each chosen entry."""
    counts = tables.counts
    if (counts == counts[0]).all():
        return int(counts[0])
    return np.repeat(counts, np.count_nonzero(chosen, axis=1))


def _add_compressed(
    references: References,
    image: Image,
    tables: Tables,
    packed: NDArray[np.bool_],
    faults: Faults,
) -> None:
    bits = image.geometry.cluster_bits
    shift = 62 - (bits - 8)
    words, counts = tables.entries(image)[packed], _weights(tables, packed)
    starts = words & np.uint64((1 << shift) - 1)
    sectors = (words >> np.uint64(shift)) & np.uint64((1 << bits - 8) - 1)
    ends = (starts // np.uint64(COMPRESSED_SECTOR) + sectors + np.uint64(1)) * np.uint64(
        COMPRESSED_SECTOR
    )
    first, last = starts >> np.uint64(bits), (ends - np.uint64(1)) >> np.uint64(bits)
    _add(references, image, first, counts, faults)
    for step in range(1, int((last - first).max()) + 1):
        chosen = first + np.uint64(step) <= last
        some = counts if isinstance(counts, int) else counts[chosen]
        references.add((first[chosen] + np.uint64(step)).astype(np.int64), some)


def _add(
    references: References,
    image: Image,
    clusters: NDArray[np.uint64],
    counts: int | NDArray[np.int64],
    faults: Faults,
) -> None:
    end = image.geometry.clusters(image.file.node.size)
    faults.past_end += int((clusters >= np.uint64(end)).sum())
    references.add(clusters.astype(np.int64), counts)
