# SPDX-License-Identifier: Apache-2.0
"""The "copied" bits of the disk's tables: whether a cluster may be changed in place.

An L2 table that snapshots share is copied before it changes, so its own bits have no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.gather import read_tables
from vhostblk.block.drivers.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK
from vhostblk.block.drivers.qcow2.ordered import sorted_once
from vhostblk.block.drivers.qcow2.transfer import PIECE, write_array

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.gather import Tables
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.pace import Pace
    from vhostblk.block.graph.checking import CheckResult

    #: Returns for each cluster whether it has exactly one reference.
    Alone = Callable[[NDArray[np.int64]], Awaitable[NDArray[np.bool_]]]


async def check_flags(
    image: Image, alone: Alone, result: CheckResult, pace: Pace, *, repair: bool
) -> None:
    """Compare the bits of the active tables with the number of references to clusters."""
    tables, geometry = image.tables, image.geometry
    own: list[NDArray[np.int64]] = []
    for start in range(0, len(tables.l1), PIECE):
        words = tables.l1[start : start + PIECE]
        offsets = words & np.uint64(OFFSET_MASK)
        good = (offsets != 0) & (offsets < np.uint64(image.file.node.size))
        good &= (offsets & np.uint64(geometry.cluster_size - 1)) == 0
        places = np.flatnonzero(good)
        clusters = (offsets[places] >> np.uint64(geometry.cluster_bits)).astype(np.int64)
        single = await alone(clusters)
        mistaken = places[single != ((words[places] & np.uint64(COPIED)) != 0)]
        result.corruptions += len(mistaken)
        if repair:
            result.corruptions_fixed += len(mistaken)
            for index in (start + mistaken).tolist():
                image.check_l1(index)
                tables.set_l1(index, int(tables.l1[index]) ^ COPIED)
        own.append(clusters[single])
        await pace.turn(0)
    clusters = sorted_once(np.concatenate([np.zeros(0, np.int64), *own]))
    async for read in read_tables(image, clusters, clusters, pace):
        found = await _wrong_bits(image, alone, read)
        result.corruptions += int(found.sum())
        if repair and found.any():
            result.corruptions_fixed += int(found.sum())
            read.entries(image)[found] ^= np.uint64(COPIED)
            await _write(image, read)


async def _wrong_bits(image: Image, alone: Alone, tables: Tables) -> NDArray[np.bool_]:
    """Return for each entry of L2 tables whether its bit is wrong."""
    entries = tables.entries(image)
    flagged = (entries & np.uint64(COPIED)) != 0
    offsets = entries & np.uint64(OFFSET_MASK)
    packed = (entries & np.uint64(COMPRESSED)) != 0
    there = ~packed & (offsets != 0)
    clusters = (offsets[there] >> np.uint64(image.geometry.cluster_bits)).astype(np.int64)
    mistaken: NDArray[np.bool_] = packed & flagged
    mistaken[there] = await alone(clusters) != flagged[there]
    return mistaken


async def clear_copied(image: Image, l1: NDArray[np.uint64], pace: Pace) -> None:
    """Clear the bits in the L2 tables of an L1 table, whose offsets are valid."""
    await image.tables.drop(pace)
    image.commit.wrote()
    offsets = l1[l1 & np.uint64(OFFSET_MASK) != 0] & np.uint64(OFFSET_MASK)
    clusters = sorted_once((offsets >> np.uint64(image.geometry.cluster_bits)).astype(np.int64))
    async for read in read_tables(image, clusters, clusters, pace):
        entries = read.entries(image)
        flagged = (entries & np.uint64(COPIED)) != 0
        flagged &= (entries & np.uint64(COMPRESSED)) == 0
        if flagged.any():
            entries[flagged] &= ~np.uint64(COPIED)
            await _write(image, read)


async def _write(image: Image, tables: Tables) -> None:
    """Write L2 tables back in place."""
    offset = int(tables.clusters[0]) << image.geometry.cluster_bits
    await write_array(image.file, offset, tables.words.reshape(-1).astype(">u8"))
