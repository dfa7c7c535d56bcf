# SPDX-License-Identifier: Apache-2.0
"""Preallocation: host clusters for guest clusters that have not been written.

The image's lock is held. With extended L2 entries, a preallocated cluster may still show the
content of the backing file; otherwise it reads as zeroes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import ALL_SUBCLUSTERS, COPIED, SUBCLUSTERS
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.pause import Pause


async def preallocate(
    image: Image, size: int, mode: PreallocMode, pause: Pause, *, zeroes: bool
) -> None:
    """Map all clusters from the disk's end to `size`, with storage according to `mode`.

    `zeroes`: extended L2 entries read as zeroes, and hide the backing file. Raises OSError.
    """
    geometry = image.geometry
    first, last = geometry.clusters(image.size), geometry.clusters(size)
    if not geometry.external_data:
        await image.allocator.reserve(_estimate(image, last - first), _of_file(mode))
    per_slice = image.publisher.slice_clusters
    for cluster in range(first // per_slice * per_slice, last, per_slice):
        low, high = max(first - cluster, 0), min(last - cluster, per_slice)
        found = await image.ensure_table((cluster + low) << geometry.cluster_bits)
        found.pins += 1
        try:
            await _map(image, found, cluster, low, high, zeroes=zeroes)
        finally:
            found.pins -= 1
        image.commit.wrote()
        await image.relieve()
        await pause()


def _of_file(mode: PreallocMode) -> PreallocMode:
    """Return the mode for the file itself: mapped clusters only need a longer file."""
    return PreallocMode.OFF if mode is PreallocMode.METADATA else mode


async def _map(
    image: Image, found: L2Slice, cluster: int, low: int, high: int, *, zeroes: bool
) -> None:
    """Assign clusters to entries [low, high) of a slice, whose first guest cluster is given."""
    geometry = image.geometry
    words = found.words.reshape(-1, image.tables.words_per_entry)
    places = low + np.flatnonzero(~words[low:high].any(axis=1))
    if not len(places):
        return
    if geometry.external_data:
        hosts = (cluster + places).astype(np.uint64)
    else:
        hosts = await _allocate(image, len(places))
    words[places, 0] = (hosts << np.uint64(geometry.cluster_bits)) | np.uint64(COPIED)
    if geometry.extended_l2 and zeroes:
        words[places, 1] = ALL_SUBCLUSTERS << SUBCLUSTERS
    found.touch(int(places[0]), int(places[-1]) + 1)
    image.publisher.update(found, int(places[0]), int(places[-1]) + 1)


async def _allocate(image: Image, count: int) -> NDArray[np.uint64]:
    """Allocate clusters that read as zeroes; shape (count,)."""
    bits = image.geometry.cluster_bits
    runs = await image.allocator.allocate(count)
    try:
        for run in runs:
            if not run.fresh:
                await image.file.pwrite_zeroes(run.first << bits, run.length << bits)
    except BaseException:
        for run in runs:
            await image.allocator.free(run)
        raise
    return np.concatenate(
        [np.arange(run.first, run.first + run.length, dtype=np.uint64) for run in runs]
    )


def _estimate(image: Image, clusters: int) -> int:
    """Return the maximum number of clusters that the file will have."""
    geometry = image.geometry
    tables = (clusters >> geometry.l2_bits) + 2
    total = image.allocator.high_water + clusters + tables
    blocks = (total >> geometry.refblock_bits) + 2
    table = (8 * (total + blocks) >> geometry.refblock_bits + geometry.cluster_bits) + 2
    # A refcount table grows by half, with blocks for its own clusters.
    return total + blocks + 2 * table
