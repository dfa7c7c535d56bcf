# SPDX-License-Identifier: Apache-2.0
"""Checks of an image, with its lock held and no dirty metadata. Repairs are in `repair`.

References to clusters are taken as correct. Refcounts, and "copied" bits, which follow from them,
are compared with the references and repaired.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.copied import check_flags
from vhostblk.block.drivers.qcow2.gather import gather_references
from vhostblk.block.drivers.qcow2.layout import REFTABLE_OFFSET_MASK
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.repair import (
    drop_misplaced,
    make_blocks,
    plan_blocks,
    well_placed,
)
from vhostblk.block.graph.checking import CheckResult
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.references import References

#: Number of refcounts to compare at once; a block may have millions.
_WINDOW = 1 << 16


async def check(image: Image, *, repair: bool) -> CheckResult:
    """Check an image; `repair`: correct refcounts and flags. Raises OSError."""
    result, pace = CheckResult(), Pace(image, "repairing" if repair else "checking")
    if repair:
        result.corruptions = result.corruptions_fixed = drop_misplaced(image)
    references, faults = await gather_references(image, pace)
    result.corruptions += faults.wrong + faults.past_end
    bits = image.geometry.refblock_bits
    covered = _covered(image, result)
    missing = np.setdiff1d(references.blocks(bits), covered, assume_unique=True)
    pace.begin("looking for missing refcount blocks", len(missing))
    lacking: list[tuple[int, int]] = []
    for index in missing.tolist():
        count = references.distinct(index << bits, index + 1 << bits)
        if count:
            lacking.append((index, count))
        await pace.turn()
    result.corruptions += sum(count for _, count in lacking)
    if repair:
        if references.most > image.geometry.refcount_max:
            raise os_error(errno.ERANGE)
        layout = plan_blocks(image, [index for index, _ in lacking], covered)
        references.add(np.array(layout.clusters, np.int64))
        await make_blocks(image, layout, references, pace)
        result.corruptions_fixed += sum(count for _, count in lacking)
    pace.begin("comparing refcounts", len(covered))
    for index in covered.tolist():
        await _check_block(image, index, references, result, repair=repair)
        await pace.turn()

    async def alone(clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
        single: NDArray[np.bool_] = references.of(clusters) == 1
        return single

    if not image.geometry.external_data:
        await check_flags(image, alone, result, pace, repair=repair)
    if repair:
        image.allocator.forget_places()
        image.overlap.collect()
        await image.commit.write_all()
    return result


def _covered(image: Image, result: CheckResult) -> NDArray[np.int64]:
    """Return the numbers of the refcount blocks that are readable.

    If several entries refer to one block, all but the first are errors.
    """
    offsets = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK)
    found = np.flatnonzero((offsets != 0) & well_placed(image))
    order = np.argsort(offsets[found], kind="stable")
    ordered = offsets[found][order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    result.corruptions += len(again)
    return np.delete(found, again)


async def _check_block(
    image: Image, index: int, references: References, result: CheckResult, *, repair: bool
) -> None:
    """Compare a refcount block with the number of references to its clusters."""
    block = await image.refcounts.block(index)
    assert block is not None
    first = index << image.geometry.refblock_bits
    for low in range(0, len(block.values), _WINDOW):
        values = block.values[low : low + _WINDOW]
        actual = values.astype(np.uint64)
        right = references.window(first + low, first + low + len(values)).astype(np.uint64)
        changed = np.flatnonzero(actual != right)
        if not len(changed):
            continue
        lower = int((actual < right).sum())
        result.corruptions += lower
        result.leaks += len(changed) - lower
        if repair:
            await image.refcounts.check_place(block.host)
            result.corruptions_fixed += lower
            result.leaks_fixed += len(changed) - lower
            values[:] = right.astype(values.dtype)
            block.touch(low + int(changed[0]), low + int(changed[-1]) + 1)
    if len(image.refcounts.blocks) > image.refcounts.limit and block.dirty:
        await image.commit.write_refcounts()  # all of them may be wrong
