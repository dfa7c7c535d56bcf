# SPDX-License-Identifier: Apache-2.0
"""Checking an image and repairing its refcounts; the image's lock is held, nothing is dirty.

What refers to clusters is right; refcounts and the bits "copied" that follow from them are put in
step with it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.allocator import block_dtype
from vhostblk.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    MAX_REFTABLE_BYTES,
    OFFSET_MASK,
    REFTABLE_OFFSET_MASK,
)
from vhostblk.block.drivers.qcow2.ordered import sorted_once
from vhostblk.block.drivers.qcow2.refcounts import RefBlock
from vhostblk.block.drivers.qcow2.references import gather_references
from vhostblk.block.drivers.qcow2.transfer import read_array, write_array
from vhostblk.block.graph.checking import CheckResult
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image


async def check(image: Image, *, repair: bool) -> CheckResult:
    """Check an image; `repair`: put refcounts and flags right."""
    result = CheckResult()
    if repair:
        result.corruptions = result.corruptions_fixed = _drop_misplaced(image)
    tally, wrong = await gather_references(image)
    result.corruptions += wrong
    clusters, expected = tally.counts()
    bits = image.geometry.refblock_bits
    there = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK) != 0
    covered = set(np.flatnonzero(there & _well_placed(image)).tolist())
    needed = set(sorted_once(clusters >> bits).tolist())
    once = clusters[expected == 1]
    if repair:
        if expected.max(initial=0) > image.geometry.refcount_max:
            raise os_error(errno.ERANGE)
        layout = _plan_blocks(image, needed, covered)
        tally.add(np.array(layout.clusters, np.int64))
        clusters, expected = tally.counts()
        await _make_blocks(image, layout, clusters, expected, result)
    for index in sorted(covered):
        part = _part(index, bits, clusters, expected)
        await _check_block(image, index, part, result, repair=repair)
    for index in needed - covered if not repair else ():
        result.corruptions += int((_part(index, bits, clusters, expected) != 0).sum())
    if not image.geometry.external_data:
        await check_flags(image, once, result, repair)
    if repair:
        image.allocator.forget_places()
        image.overlap.collect()
        await image.commit.write_all()
    return result


def _well_placed(image: Image) -> NDArray[np.bool_]:
    """Return, for each refcount table entry, whether its offset is aligned and in the file."""
    offsets = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK)
    aligned = (offsets & np.uint64(image.geometry.cluster_size - 1)) == 0
    good: NDArray[np.bool_] = aligned & (offsets < np.uint64(image.file.node.size))
    return good


def _drop_misplaced(image: Image) -> int:
    """Forget refcount blocks with an invalid offset, and those that share a cluster.

    Return how many. The check makes new blocks for the same entries.
    """
    offsets = image.refcounts.table & np.uint64(REFTABLE_OFFSET_MASK)
    shared = image.overlap.are_contested(offsets)
    found = np.flatnonzero((offsets != 0) & (shared | ~_well_placed(image))).tolist()
    for index in found:
        image.change_reftable(index, 0)
        image.refcounts.blocks.pop(index, None)
    image.overlap.collect()
    return len(found)


def _part(
    index: int, bits: int, clusters: NDArray[np.int64], expected: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return what a refcount block should have, shape (entries,)."""
    low, high = np.searchsorted(clusters, [index << bits, (index + 1) << bits])
    right = np.zeros(1 << bits, np.uint64)
    right[clusters[low:high] - (index << bits)] = expected[low:high].astype(np.uint64)
    return right


async def _check_block(
    image: Image, index: int, right: NDArray[np.uint64], result: CheckResult, *, repair: bool
) -> None:
    """Hold a refcount block against what it should have."""
    block = await image.refcounts.block(index)
    assert block is not None
    actual = block.values.astype(np.uint64)
    low, high = int((actual < right).sum()), int((actual > right).sum())
    result.corruptions += low
    result.leaks += high
    changed = np.flatnonzero(actual != right)
    if repair and len(changed):
        await image.refcounts.check_place(block.host)
        result.corruptions_fixed += low
        result.leaks_fixed += high
        block.values[:] = right.astype(block.values.dtype)
        block.touch(int(changed[0]), int(changed[-1]) + 1)


@dataclass
class _Layout:
    """Where refcount structures that are missing will be: all past the clusters in use."""

    #: Clusters of blocks, by index.
    blocks: dict[int, int]
    #: The refcount table's new place, if it has to be longer, and its length in clusters.
    table: int
    table_clusters: int
    #: All of them.
    clusters: list[int]


def _plan_blocks(image: Image, needed: set[int], covered: set[int]) -> _Layout:
    """Find room for blocks for all clusters in use, those that are added among them."""
    geometry = image.geometry
    bits, per_cluster = geometry.refblock_bits, geometry.cluster_size >> 3
    layout = _Layout({}, 0, 0, [])
    position = image.allocator.high_water

    def take() -> int:
        nonlocal position
        layout.clusters.append(position)
        pending.add(position >> bits)
        position += 1
        return position - 1

    pending = set(needed)
    while True:
        while missing := sorted(pending - covered - layout.blocks.keys()):
            layout.blocks[missing[0]] = take()
        entries = max(layout.blocks, default=0) + 1
        if entries <= max(len(image.refcounts.table), layout.table_clusters * per_cluster):
            return layout
        # With some room, as a place once taken is not given up.
        layout.table_clusters = -(-(entries + 2) // per_cluster)
        if layout.table_clusters * geometry.cluster_size > MAX_REFTABLE_BYTES:
            raise os_error(errno.EFBIG)
        layout.table = take()
        for _ in range(layout.table_clusters - 1):
            take()


async def _make_blocks(
    image: Image,
    layout: _Layout,
    clusters: NDArray[np.int64],
    expected: NDArray[np.int64],
    result: CheckResult,
) -> None:
    geometry, refcounts = image.geometry, image.refcounts
    bits = geometry.refblock_bits
    made = []
    for index, cluster in layout.blocks.items():
        right = _part(index, bits, clusters, expected)
        result.corruptions += int((right != 0).sum())
        result.corruptions_fixed += int((right != 0).sum())
        values = right.astype(block_dtype(geometry.refcount_order))
        block = RefBlock(index, cluster << geometry.cluster_bits, values)
        block.touch(0, 1 << bits)
        made.append(block)
    if layout.clusters:
        await image.allocator.extend(layout.clusters[-1] + 1)
    if layout.table_clusters:
        table = np.zeros(layout.table_clusters * geometry.cluster_size >> 3, np.uint64)
        table[: len(refcounts.table)] = refcounts.table
        for block in made:
            table[block.index] = block.host
        await image.commit.move_reftable(table, layout.table << geometry.cluster_bits, made)
        return
    for block in made:
        image.change_reftable(block.index, block.host)
        refcounts.add(block)


async def check_flags(
    image: Image, once: NDArray[np.int64], result: CheckResult, repair: bool
) -> None:
    """Hold the bits "copied" of the active tables against the refcounts."""
    tables, geometry = image.tables, image.geometry
    bits = geometry.cluster_bits
    for index in np.flatnonzero(tables.l1 & np.uint64(OFFSET_MASK)).tolist():
        word = int(tables.l1[index])
        offset = word & OFFSET_MASK
        if offset & (geometry.cluster_size - 1) or offset >= image.file.node.size:
            continue
        alone = bool(np.isin(offset >> bits, once, assume_unique=True))
        if alone != bool(word & COPIED):
            result.corruptions += 1
            if repair:
                result.corruptions_fixed += 1
                image.check_l1(index)
                tables.set_l1(index, word ^ COPIED)
        if not alone:
            continue  # a table that snapshots have too is replaced before it is changed
        words = (await read_array(image.file, offset, geometry.cluster_size // 8, ">u8")).astype(
            np.uint64
        )
        entries = words[0::2] if geometry.extended_l2 else words
        plain = (entries & np.uint64(COMPRESSED)) == 0
        hosts = entries & np.uint64(OFFSET_MASK)
        single = np.isin((hosts >> np.uint64(bits)).astype(np.int64), once)
        flagged = (entries & np.uint64(COPIED)) != 0
        mistaken = np.where(plain, (hosts != 0) & (single != flagged), flagged)
        if not mistaken.any():
            continue
        result.corruptions += int(mistaken.sum())
        if repair:
            result.corruptions_fixed += int(mistaken.sum())
            entries[mistaken] ^= np.uint64(COPIED)
            await write_array(image.file, offset, words.astype(">u8"))
