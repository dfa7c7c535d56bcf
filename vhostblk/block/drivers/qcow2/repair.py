# SPDX-License-Identifier: Apache-2.0
"""Refcount blocks of an image under repair: invalid ones and missing ones."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.allocator import block_dtype
from vhostblk.block.drivers.qcow2.layout import MAX_REFTABLE_BYTES, REFTABLE_OFFSET_MASK
from vhostblk.block.drivers.qcow2.refcounts import pack
from vhostblk.block.drivers.qcow2.transfer import write_array
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.pace import Pace
    from vhostblk.block.drivers.qcow2.references import References

#: The maximum number of blocks to add for clusters past the end of a truncated file.
_PAST_END = 64
#: Number of refcounts to compute at once, and bytes of blocks to write together.
_WINDOW, _BYTES = 1 << 16, 256 << 10


def well_placed(image: Image) -> NDArray[np.bool_]:
    """Return, for each refcount table entry, whether its offset is aligned and in the file."""
    offsets = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK)
    aligned = (offsets & np.uint64(image.geometry.cluster_size - 1)) == 0
    good: NDArray[np.bool_] = aligned & (offsets < np.uint64(image.file.node.size))
    return good


def drop_misplaced(image: Image) -> int:
    """Drop refcount blocks with an invalid offset, and those that share a cluster.

    Return their number. New blocks are created for the same entries.
    """
    offsets = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK)
    shared = image.overlap.are_contested(offsets)
    found = np.flatnonzero((offsets != 0) & (shared | ~well_placed(image))).tolist()
    for index in found:
        image.change_reftable(index, 0)
        image.refcounts.blocks.pop(index, None)
    image.overlap.collect()
    return len(found)


@dataclass
class Layout:
    """The places of missing refcount structures, all past the clusters in use."""

    #: Clusters of blocks, by index.
    blocks: dict[int, int] = field(default_factory=dict)
    #: The refcount table's new place, if it must be longer, and its length in clusters.
    table: int = 0
    table_clusters: int = 0
    #: All clusters of the layout.
    clusters: list[int] = field(default_factory=list)


def plan_blocks(image: Image, missing: Sequence[int], covered: NDArray[np.int64]) -> Layout:
    """Find places for the missing blocks, and for those that these and a longer table need.

    Raises OSError if there are too many, because most clusters in use are not in the file.
    """
    geometry = image.geometry
    bits, per_cluster = geometry.refblock_bits, geometry.cluster_size >> 3
    position = image.allocator.high_water
    if len(missing) > (position >> bits) + _PAST_END:
        raise OSError(errno.EFBIG, "too many clusters in use are past the end of the file")
    layout, known, left = Layout(), {*covered.tolist(), *missing}, list(missing)

    def take() -> int:
        nonlocal position
        layout.clusters.append(position)
        if position >> bits not in known:
            known.add(position >> bits)
            left.append(position >> bits)
        position += 1
        return position - 1

    while True:
        while left:
            index = left.pop()
            layout.blocks[index] = take()
        entries = max(layout.blocks, default=0) + 1
        if entries <= max(len(image.refcounts.table), layout.table_clusters * per_cluster):
            return layout
        # With some reserve, as the table is not moved again.
        layout.table_clusters = -(-(entries + 2) // per_cluster)
        if layout.table_clusters * geometry.cluster_size > MAX_REFTABLE_BYTES:
            raise os_error(errno.EFBIG)
        layout.table = take()
        for _ in range(layout.table_clusters - 1):
            take()


async def make_blocks(image: Image, layout: Layout, references: References, pace: Pace) -> None:
    """Write the blocks, and a refcount table that refers to them if it must be longer."""
    geometry, refcounts = image.geometry, image.refcounts
    if not layout.clusters:
        return
    await image.allocator.extend(layout.clusters[-1] + 1)
    pace.begin("making refcount blocks", len(layout.blocks))
    together, start = max(_BYTES >> geometry.cluster_bits, 1), 0
    parts: list[NDArray[np.uint8]] = []
    for index, cluster in layout.blocks.items():
        if parts and (len(parts) == together or cluster != start + len(parts)):
            await write_array(image.file, start << geometry.cluster_bits, np.concatenate(parts))
            parts.clear()
        start = start if parts else cluster
        parts.append(_block(image, index, references))
        await pace.turn()
    await write_array(image.file, start << geometry.cluster_bits, np.concatenate(parts))
    image.commit.wrote()
    if layout.table_clusters:
        table = np.zeros(layout.table_clusters * geometry.cluster_size >> 3, np.uint64)
        table[: len(refcounts.table)] = refcounts.table
        for index, cluster in layout.blocks.items():
            table[index] = cluster << geometry.cluster_bits
        await image.commit.move_reftable(table, layout.table << geometry.cluster_bits, [])
        return
    for index, cluster in layout.blocks.items():
        image.change_reftable(index, cluster << geometry.cluster_bits)


def _block(image: Image, index: int, references: References) -> NDArray[np.uint8]:
    """Return the bytes of a refcount block."""
    geometry = image.geometry
    values = np.zeros(1 << geometry.refblock_bits, block_dtype(geometry.refcount_order))
    for low in range(0, len(values), _WINDOW):
        part = values[low : low + _WINDOW]
        first = (index << geometry.refblock_bits) + low
        part[:] = references.window(first, first + len(part)).astype(values.dtype)
    return pack(values, geometry.refcount_order)
