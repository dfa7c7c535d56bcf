# SPDX-License-Identifier: Apache-2.0
"""Changes of the refcounts of many clusters at once, block by block, for snapshots."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vhostblk.errors import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.pace import Pace
    from vhostblk.block.drivers.qcow2.refcounts import RefBlock
    from vhostblk.block.drivers.qcow2.references import References

#: Number of refcounts to change at once; a block may have millions.
_WINDOW = 1 << 16


class _Change(NamedTuple):
    """New values of a part of a refcount block, from entry `low` on."""

    block: RefBlock
    low: int
    #: Whether each value changes, and the new values.
    changes: NDArray[np.bool_]
    after: NDArray[Any]


async def check_refcounts(image: Image, references: References, sign: int, pace: Pace) -> None:
    """Raise OSError if references can't be added to the refcounts (`sign` +1) or removed (-1)."""
    pace.begin("checking refcounts", 1)
    for first, stop in _windows(image, references):
        await _change(image, references, sign, first, stop)
        await pace.turn()


async def change_refcounts(
    image: Image, references: References, sign: int, pace: Pace
) -> list[NDArray[np.int64]]:
    """Add references to the refcounts, or remove them; return the clusters that became free.

    On OSError nothing has changed.
    """
    freed: list[NDArray[np.int64]] = []
    done: list[tuple[_Change, NDArray[Any]]] = []
    windows = _windows(image, references)
    pace.begin("changing refcounts", len(windows))
    try:
        for first, stop in windows:
            change = await _change(image, references, sign, first, stop)
            if change is not None:
                done.append((change, _put(change, change.after)))
                free = change.changes & (change.after == 0)
                if free.any():
                    freed.append(first + np.flatnonzero(free))
            await pace.turn()
    except BaseException:
        for change, before in done:
            _put(change, before)
        raise
    return freed


def _windows(image: Image, references: References) -> list[tuple[int, int]]:
    """Return ranges of clusters that may have references, each in one refcount block."""
    bits = min(image.geometry.refblock_bits, _WINDOW.bit_length() - 1)
    return [(each << bits, each + 1 << bits) for each in references.blocks(bits).tolist()]


def _put(change: _Change, values: NDArray[Any]) -> NDArray[Any]:
    """Set values in a refcount block; return the former values."""
    low, high = change.low, change.low + len(values)
    before = change.block.values[low:high].copy()
    change.block.values[low:high] = values
    places = np.flatnonzero(change.changes)
    change.block.touch(low + int(places[0]), low + int(places[-1]) + 1)
    return before


async def _change(
    image: Image, references: References, sign: int, first: int, stop: int
) -> _Change | None:
    """Return the new refcounts of clusters in one block; None: unchanged."""
    counts = references.window(first, stop)
    changes = counts != 0
    if not changes.any():
        return None
    bits = image.geometry.refblock_bits
    block = await image.refcounts.block(first >> bits)
    if block is None:
        raise OSError(errno.EIO, "the image is corrupt: clusters in use have no refcount")
    await image.refcounts.check_place(block.host)
    low = first & ((1 << bits) - 1)
    before = block.values[low : low + len(counts)].astype(np.uint64)
    by = counts.astype(np.uint64)
    if sign > 0:
        if (before > np.uint64(image.geometry.refcount_max) - by).any() or (
            int(counts.max()) > image.geometry.refcount_max
        ):
            raise os_error(errno.EINVAL)
        after = before + by
    else:
        if (before < by).any():
            raise OSError(errno.EIO, "the image is corrupt: refcounts are too low")
        after = before - by
    return _Change(block, low, changes, after.astype(block.values.dtype))


async def refcounts_of(image: Image, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the refcounts of clusters in any order; raises OSError."""
    bits = image.geometry.refblock_bits
    found = np.zeros(len(clusters), np.uint64)
    blocks = clusters >> bits
    order = None
    if len(blocks) and (blocks[1:] < blocks[:-1]).any():
        order = np.argsort(blocks, kind="stable")
        clusters, blocks = clusters[order], blocks[order]
    starts = np.flatnonzero(np.diff(blocks, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(blocks)]):
        block = await image.refcounts.block(int(blocks[start]))
        if block is not None:
            found[start:stop] = block.values[clusters[start:stop] & ((1 << bits) - 1)]
    if order is not None:
        found[order] = found.copy()
    return found
