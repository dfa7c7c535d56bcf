# SPDX-License-Identifier: Apache-2.0
"""Creating and deleting internal snapshots; drained, the image's lock is held.

A snapshot is a copy of the L1 table; all that it leads to has one reference more. What the disk and
a snapshot share is no longer "copied", and so is copied before it changes. Each step leaves an
image that is right but for clusters in use without need.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.check import check_flags
from vhostblk.block.drivers.qcow2.layout import (
    COMPRESSED,
    COPIED,
    HEADER,
    MAX_SNAPSHOTS,
    MAX_SNAPSHOTS_BYTES,
    OFFSET_MASK,
)
from vhostblk.block.drivers.qcow2.references import Tally, add_tree, gather_references
from vhostblk.block.drivers.qcow2.snapshots import Snapshot, encode_table
from vhostblk.block.drivers.qcow2.transfer import read_array, write_array, write_bytes
from vhostblk.block.edge import os_error
from vhostblk.block.node import CheckResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image

#: Tables of more snapshots are encoded on a thread.
_MANY = 256
_NB_SNAPSHOTS = HEADER.offsets["nb_snapshots"]


async def create(image: Image, name: bytes, seconds: int, nanoseconds: int) -> Snapshot:
    """Make a snapshot of the disk as it is; raises OSError."""
    entries = image.snapshots.entries
    if len(entries) >= MAX_SNAPSHOTS:
        raise os_error(errno.EFBIG)
    if image.geometry.external_data:
        raise os_error(errno.ENOTSUP)  # data can't be in two places
    await image.commit.write_all()
    tally = Tally()
    if await add_tree(tally, image, image.tables.l1):
        raise OSError(errno.EIO, "the image is corrupt")
    clusters, weights = tally.counts()
    await change_refcounts(image, clusters, weights, check_only=True)
    bits = image.geometry.cluster_bits
    run = await image.allocator.allocate_together(
        max(image.geometry.clusters(8 * image.header.l1_size), 1)
    )
    await write_array(image.file, run.first << bits, image.tables.l1.astype(">u8"))
    await change_refcounts(image, clusters, weights, check_only=False)
    await image.commit.write()
    await image.commit.sync()
    image.tables.clear()
    await clear_copied(image, image.tables.l1)
    image.tables.l1_changes.touch(0, len(image.tables.l1))
    await image.commit.write()
    await image.commit.sync()
    snapshot = Snapshot(
        id=str(max((_number(each.id) for each in entries), default=0) + 1).encode(),
        name=name,
        l1_offset=run.first << bits,
        l1_size=image.header.l1_size,
        disk_size=image.size,
        date_sec=seconds,
        date_nsec=nanoseconds,
    )
    await _write_table(image, [*entries, snapshot])
    image.overlap.collect()
    return snapshot


async def delete(image: Image, snapshot: Snapshot) -> None:
    """Delete a snapshot; raises OSError."""
    geometry = image.geometry
    if geometry.external_data:
        raise os_error(errno.ENOTSUP)
    await image.commit.write_all()
    raw = await read_array(image.file, snapshot.l1_offset, snapshot.l1_size, ">u8")
    tally = Tally()
    await add_tree(tally, image, raw.astype(np.uint64))
    tally.add_range(geometry.cluster_bits, snapshot.l1_offset, 8 * snapshot.l1_size)
    clusters, weights = tally.counts()
    await change_refcounts(image, clusters, -weights, check_only=True)
    await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
    await image.publisher.settle()
    await change_refcounts(image, clusters, -weights, check_only=False)
    await image.commit.write_all()
    # What only the disk has now may be changed in place again.
    references, _ = await gather_references(image)
    found, counts = references.counts()
    image.tables.clear()
    await check_flags(image, found[counts == 1], CheckResult(), repair=True)
    await image.commit.write_all()
    image.overlap.collect()


def find(image: Image, snapshot_id: bytes | None, name: bytes | None) -> Snapshot | None:
    """Return the snapshot that has the id and the name, as far as they are given."""
    for each in image.snapshots.entries:
        if snapshot_id in (None, each.id) and name in (None, each.name):
            return each
    return None


def _number(text: bytes) -> int:
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    return int(digits[:18] or b"0")


async def change_refcounts(
    image: Image, clusters: NDArray[np.int64], by: NDArray[np.int64], *, check_only: bool
) -> None:
    """Add to refcounts; raises OSError where one can't be changed, if only checked for nothing."""
    bits = image.geometry.refblock_bits
    for index in np.unique(clusters >> bits).tolist():
        low, high = np.searchsorted(clusters, [index << bits, (index + 1) << bits])
        block = await image.refcounts.block(index)
        if block is None:
            raise OSError(errno.EIO, "the image is corrupt: clusters in use have no refcount")
        await image.places.ensure(block.host)
        places = clusters[low:high] - (index << bits)
        changed = block.values[places].astype(object) + by[low:high].astype(object)
        if (changed > image.geometry.refcount_max).any():
            raise os_error(errno.EINVAL)
        if (changed < 0).any():
            raise OSError(errno.EIO, "the image is corrupt: refcounts are too low")
        if check_only:
            continue
        block.values[places] = changed.astype(block.values.dtype)
        block.touch(int(places.min()), int(places.max()) + 1)
        for cluster in (clusters[low:high][changed == 0]).tolist():
            image.allocator.released(cluster)
            if image.settings.discard_snapshot:
                await image.commit.discard(cluster, 1)


async def clear_copied(image: Image, l1: NDArray[np.uint64]) -> None:
    """Have nothing that an L1 table leads to changed in place; it has been checked."""
    geometry = image.geometry
    l1 &= ~np.uint64(COPIED)
    for offset in l1[l1 & np.uint64(OFFSET_MASK) != 0].tolist():
        offset &= OFFSET_MASK
        raw = await read_array(image.file, offset, geometry.cluster_size // 8, ">u8")
        words = raw.astype(np.uint64)
        entries = words[0::2] if geometry.extended_l2 else words
        flagged = (entries & np.uint64(COPIED)) != 0
        flagged &= (entries & np.uint64(COMPRESSED)) == 0
        if flagged.any():
            entries[flagged] &= ~np.uint64(COPIED)
            await write_array(image.file, offset, words.astype(">u8"))
    image.commit.unsynced = True


async def _write_table(image: Image, entries: list[Snapshot]) -> None:
    """Write the snapshot table to a new place, and give the old one up."""
    bits, header = image.geometry.cluster_bits, image.header
    encode = partial(encode_table, entries)
    data = await image.in_thread(encode) if len(entries) > _MANY else encode()
    if len(data) > MAX_SNAPSHOTS_BYTES:
        raise os_error(errno.EFBIG)
    offset = 0
    if data:
        run = await image.allocator.allocate_together(image.geometry.clusters(len(data)))
        offset = run.first << bits
        await write_bytes(image.file, offset, data)
    image.commit.unsynced = True
    await image.commit.write()
    await image.commit.sync()
    pointer = len(entries).to_bytes(4, "big") + offset.to_bytes(8, "big")
    await write_bytes(image.file, _NB_SNAPSHOTS, pointer)
    await image.file.flush()
    old, old_bytes = header.snapshots_offset, image.snapshots.table_bytes
    header.nb_snapshots, header.snapshots_offset = len(entries), offset
    image.snapshots.entries = entries
    image.snapshots.table_bytes = len(data)
    if old_bytes:
        image.commit.free(old >> bits, image.geometry.clusters(old_bytes))
    image.overlap.collect()
