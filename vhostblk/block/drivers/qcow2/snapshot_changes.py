# SPDX-License-Identifier: Apache-2.0
"""Creation and deletion of internal snapshots; drained, with the image's lock held.

A snapshot is a copy of the L1 table; the refcounts of all clusters that it refers to increase by
one. Clusters that the disk shares with a snapshot lose their "copied" bit, so they are copied
before they change. One write makes the header refer to a new snapshot table. A crash leaves a
correct image, perhaps with leaked clusters and missing "copied" bits. An operation that fails
changes nothing.
"""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhostblk.block.drivers.qcow2.copied import check_flags, clear_copied
from vhostblk.block.drivers.qcow2.gather import add_range, gather_tree
from vhostblk.block.drivers.qcow2.layout import (
    COPIED,
    MAX_SNAPSHOT_NAME,
    MAX_SNAPSHOTS,
    MAX_SNAPSHOTS_BYTES,
)
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.refcount_changes import (
    change_refcounts,
    check_refcounts,
    refcounts_of,
)
from vhostblk.block.drivers.qcow2.snapshots import Snapshot, encode_table
from vhostblk.block.drivers.qcow2.transfer import read_table, write_array, write_bytes
from vhostblk.block.graph.checking import CheckResult
from vhostblk.errors import os_error, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.allocator import Run
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.references import References

logger = logging.getLogger(__name__)

#: Tables with more snapshots are encoded in a thread.
_MANY = 256


async def create(image: Image, name: bytes, seconds: int, nanoseconds: int) -> Snapshot:
    """Create a snapshot of the disk. On OSError nothing has changed.

    A name that is too long is truncated, as in QEMU.
    """
    entries, tables = image.snapshots.entries, image.tables
    if len(entries) >= MAX_SNAPSHOTS:
        raise os_error(errno.EFBIG)
    if image.geometry.external_data:
        raise os_error(errno.ENOTSUP)  # an external data file can't have snapshots
    snapshot = Snapshot(
        id=str(max((_number(each.id) for each in entries), default=0) + 1).encode(),
        name=name[:MAX_SNAPSHOT_NAME],
        l1_offset=0,
        l1_size=image.header.l1_size,
        disk_size=image.size,
        date_sec=seconds,
        date_nsec=nanoseconds,
    )
    await _encode(image, [*entries, snapshot])  # raises OSError if there is no room
    await image.commit.write_all()
    image.check_l1(0, len(tables.l1))
    pace = Pace(image, "creating a snapshot")
    taken = await take_tree(image, tables.l1, pace)
    try:
        tables.share_all()
        await clear_copied(image, tables.l1, pace)
        snapshot.l1_offset = taken.run.first << image.geometry.cluster_bits
        await _write_table(image, [*entries, snapshot])
    except BaseException:
        taken.give_up(image)
        await try_to_tidy_up(image)
        raise
    return snapshot


async def delete(image: Image, snapshot: Snapshot) -> None:
    """Delete a snapshot. On OSError the snapshot still exists."""
    geometry = image.geometry
    if geometry.external_data:
        raise os_error(errno.ENOTSUP)
    pace = Pace(image, "deleting a snapshot")
    await image.commit.write_all()
    l1 = await read_table(image.file, snapshot.l1_offset, snapshot.l1_size)
    references, _ = await gather_tree(image, l1, pace)
    add_range(references, image, snapshot.l1_offset, 8 * snapshot.l1_size)
    await check_refcounts(image, references, -1, pace)
    await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
    image.commit.free_many(references, discard=image.settings.discard_snapshot)
    await try_to_tidy_up(image)


async def try_to_tidy_up(image: Image) -> None:
    """Free unused clusters, and set "copied" where only the disk has a reference.

    If that fails, it is repeated when the image is closed. Until then, some clusters are copied
    before they change although that is not necessary.
    """
    image.references_dropped()
    try:
        await _tidy_up(image)
    except OSError as error:
        image.check_usable()
        logger.warning("%s: could not free clusters: %s", image.file.node.filename, reason(error))


async def _tidy_up(image: Image) -> None:
    """Do what `try_to_tidy_up` does; raises OSError."""
    await image.commit.write_all()
    await image.commit.sync()
    pace = Pace(image, "freeing clusters")
    await image.tables.drop(pace)

    async def alone(clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
        single: NDArray[np.bool_] = await refcounts_of(image, clusters) == 1
        return single

    await check_flags(image, alone, CheckResult(), pace, repair=True)
    await image.commit.write_all()
    await image.commit.sync()
    image.tidied_up()


def find(image: Image, snapshot_id: bytes | None, name: bytes | None) -> Snapshot | None:
    """Return the snapshot that has the given id and name; either may be missing."""
    for each in image.snapshots.entries:
        if snapshot_id in (None, each.id) and name in (None, each.name):
            return each
    return None


def _number(text: bytes) -> int:
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    return int(digits[:18] or b"0")


class Taken(NamedTuple):
    """A copy of an L1 table, and the references taken by it."""

    run: Run
    references: References

    def give_up(self, image: Image) -> None:
        """Free the copy and drop the references, once the file doesn't refer to the copy."""
        image.commit.free_many(self.references)
        image.commit.free(self.run.first, self.run.length)


async def take_tree(image: Image, l1: NDArray[np.uint64], pace: Pace) -> Taken:
    """Write a copy of an L1 table, and take a reference to everything that it refers to.

    Both are on stable storage afterwards. On OSError nothing is taken.
    """
    if image.overlap.incomplete:
        await image.overlap.complete()
    image.overlap.check_tree(l1)
    references, wrong = await gather_tree(image, l1, pace)
    if wrong:
        raise OSError(errno.EIO, "the image is corrupt")
    await check_refcounts(image, references, 1, pace)
    copy = (l1 & ~np.uint64(COPIED)).astype(">u8")
    run = await image.allocator.allocate_together(max(image.geometry.clusters(copy.nbytes), 1))
    try:
        await change_refcounts(image, references, 1, pace)
    except BaseException:
        image.commit.free(run.first, run.length)
        raise
    taken = Taken(run, references)
    try:
        await write_array(image.file, run.first << image.geometry.cluster_bits, copy)
        image.commit.wrote()
        await image.commit.write()
        await image.commit.sync()
    except BaseException:
        taken.give_up(image)
        raise
    return taken


async def _encode(image: Image, entries: list[Snapshot]) -> bytes:
    """Return the bytes of a snapshot table; raises OSError if it is too long."""
    encode = partial(encode_table, entries)
    data = await image.in_thread(encode) if len(entries) > _MANY else encode()
    if len(data) > MAX_SNAPSHOTS_BYTES:
        raise os_error(errno.EFBIG)
    return data


async def _write_table(image: Image, entries: list[Snapshot]) -> None:
    """Write the snapshot table to a new place, and free the old one.

    On OSError the old one is still in use.
    """
    geometry, header, snapshots = image.geometry, image.header, image.snapshots
    data = await _encode(image, entries)
    offset, clusters = 0, geometry.clusters(len(data))
    if data:
        run = await image.allocator.allocate_together(clusters)
        offset = run.first << geometry.cluster_bits
    old, old_clusters = header.snapshots_offset, geometry.clusters(snapshots.table_bytes)
    try:
        if data:
            await image.become_metadata(run.first, run.length, "snapshot_table")
        await write_bytes(image.file, offset, data)
        image.commit.wrote()
        await image.commit.write()
        await image.commit.sync()
        await image.header_file.change(nb_snapshots=len(entries), snapshots_offset=offset)
    except BaseException:
        if data:
            image.overlap.metadata_removed(run.first, run.length)
            image.commit.free(run.first, run.length)
        raise
    snapshots.written(entries, len(data))
    if old_clusters:
        image.commit.free(old >> geometry.cluster_bits, old_clusters)
    image.overlap.collect()
