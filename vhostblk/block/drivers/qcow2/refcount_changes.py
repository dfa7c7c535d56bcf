# SPDX-License-Identifier: Apache-2.0
"""Changing the refcounts of many clusters at once, as snapshots do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.drivers.qcow2.ordered import sorted_once
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.refcounts import RefBlock


async def check_refcounts(image: Image, clusters: NDArray[np.int64], by: NDArray[np.int64]) -> None:
    """Raise OSError if the refcounts of sorted clusters can't be changed by `by`."""
    for index, low, high in _by_block(image, clusters):
        await _changed(image, index, clusters[low:high], by[low:high])


async def change_refcounts(
    image: Image, clusters: NDArray[np.int64], by: NDArray[np.int64]
) -> list[int]:
    """Add `by` to the refcounts of sorted clusters; return the clusters that became free.

    Raises OSError; nothing has changed then.
    """
    freed: list[int] = []
    done: list[tuple[RefBlock, NDArray[np.int64], NDArray[Any]]] = []
    try:
        for index, low, high in _by_block(image, clusters):
            some = clusters[low:high]
            block, places, changed = await _changed(image, index, some, by[low:high])
            done.append((block, places, block.values[places]))
            block.values[places] = changed.astype(block.values.dtype)
            block.touch(int(places[0]), int(places[-1]) + 1)
            freed += some[changed == 0].tolist()
    except BaseException:
        for block, places, before in done:
            block.values[places] = before
        raise
    return freed


def _by_block(image: Image, clusters: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return (block index, start, stop) of each refcount block that sorted clusters need."""
    bits = image.geometry.refblock_bits
    indexes = sorted_once(clusters >> bits)
    lows = np.searchsorted(clusters, indexes << bits).tolist()
    return list(zip(indexes.tolist(), lows, [*lows, len(clusters)][1:], strict=True))


async def _changed(
    image: Image, index: int, clusters: NDArray[np.int64], by: NDArray[np.int64]
) -> tuple[RefBlock, NDArray[np.int64], NDArray[Any]]:
    """Return a block, the indexes of the counts that change, and their new values."""
    block = await image.refcounts.block(index)
    if block is None:
        raise OSError(errno.EIO, "the image is corrupt: clusters in use have no refcount")
    await image.refcounts.check_place(block.host)
    places = clusters - (index << image.geometry.refblock_bits)
    changed = block.values[places].astype(object) + by.astype(object)
    if (changed > image.geometry.refcount_max).any():
        raise os_error(errno.EINVAL)
    if (changed < 0).any():
        raise OSError(errno.EIO, "the image is corrupt: refcounts are too low")
    return block, places, changed
