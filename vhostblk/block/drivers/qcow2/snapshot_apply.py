# SPDX-License-Identifier: Apache-2.0
"""Going back to an internal snapshot; drained, the image's lock is held.

The snapshot's L1 table is copied once more, and the header goes over to the copy with one write of
one sector, the disk's length included. Until then nothing has changed but refcounts, and those are
only too high; afterwards what the disk had is given up. The state of the machine that a snapshot
may have lies past the disk's end and stays where it is: the disk has no use for it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import HEADER, MAX_L1_BYTES
from vhostblk.block.drivers.qcow2.references import Tally, add_tree
from vhostblk.block.drivers.qcow2.snapshot_changes import change_refcounts, clear_copied
from vhostblk.block.drivers.qcow2.transfer import read_array, write_array, write_bytes
from vhostblk.block.edge import MAX_SIZE, os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.allocator import Run
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.snapshots import Snapshot

_SECTOR = 512
#: The first of the header's fields that are written together, to the place of the L1 table.
_SIZE_FIELD = HEADER.offsets["size"]


async def apply(image: Image, snapshot: Snapshot) -> None:
    """Let the disk be what it was; raises OSError.

    Where it fails the disk has not changed, unless it fails to give up what the disk had before.
    """
    header, geometry = image.header, image.geometry
    if geometry.external_data:
        raise os_error(errno.ENOTSUP)
    if snapshot.disk_size % _SECTOR or snapshot.disk_size > MAX_SIZE:
        raise os_error(errno.EINVAL)
    if geometry.l1_entries(snapshot.disk_size) * 8 > MAX_L1_BYTES:
        raise os_error(errno.EFBIG)
    await image.commit.write_all()
    given_up = Tally()
    if await add_tree(given_up, image, image.tables.l1):
        raise OSError(errno.EIO, "the image is corrupt")
    given_up.add_range(geometry.cluster_bits, header.l1_offset, 8 * header.l1_size)
    table = await _snapshot_table(image, snapshot)
    run = await _prepare(image, table)
    # From here on nothing is taken back: it is not known what a write that failed has done.
    await _switch(image, snapshot.disk_size, table, run.first << geometry.cluster_bits)
    clusters, weights = given_up.counts()
    await change_refcounts(image, clusters, -weights, check_only=False)
    image.reader.forget_compressed()
    await image.commit.write_all()


async def _snapshot_table(image: Image, snapshot: Snapshot) -> NDArray[np.uint64]:
    """Read what the disk needs of a snapshot's L1 table."""
    entries = image.geometry.l1_entries(snapshot.disk_size)
    table = np.zeros(entries, np.uint64)
    there = min(entries, snapshot.l1_size)
    table[:there] = await read_array(image.file, snapshot.l1_offset, there, ">u8")
    return table


async def _prepare(image: Image, table: NDArray[np.uint64]) -> Run:
    """Put a table in the file, and a reference more on all that it leads to.

    Nobody may change any of that in place from now on.
    """
    geometry = image.geometry
    tally = Tally()
    if await add_tree(tally, image, table):
        raise OSError(errno.EIO, "the image is corrupt")
    clusters, weights = tally.counts()
    await change_refcounts(image, clusters, weights, check_only=True)
    run = await image.allocator.allocate_together(max(geometry.clusters(8 * len(table)), 1))
    try:
        await change_refcounts(image, clusters, weights, check_only=False)
        try:
            await clear_copied(image, table)
            await write_array(image.file, run.first << geometry.cluster_bits, table.astype(">u8"))
            image.commit.unsynced = True
            await image.commit.write()
            await image.commit.sync()
        except OSError:
            await change_refcounts(image, clusters, -weights, check_only=False)
            raise
    except OSError:
        await image.allocator.free(run)
        raise
    return run


async def _switch(image: Image, size: int, table: NDArray[np.uint64], offset: int) -> None:
    """Have the header, and then the image in memory, go over to the table at an offset."""
    header = image.header
    fields = size.to_bytes(8, "big") + header.crypt_method.to_bytes(4, "big")
    fields += len(table).to_bytes(4, "big") + offset.to_bytes(8, "big")
    await write_bytes(image.file, _SIZE_FIELD, fields)
    await image.file.flush()
    await image.publisher.settle()
    image.tables.clear()
    header.size, header.l1_size, header.l1_offset = size, len(table), offset
    image.tables.l1 = table
    image.new_publisher()
    image.overlap.collect()
