# SPDX-License-Identifier: Apache-2.0
"""Reverting to an internal snapshot; drained, with the image's lock held.

The snapshot's L1 table is copied. One write of one sector makes the header refer to the copy and
sets the disk's length. Until then only refcounts have changed, and those are only too high.
Afterwards the disk's former references are dropped. A snapshot's VM state is past the disk's end
and stays there: the disk doesn't use it.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block import SECTOR
from vhostblk.block.drivers.qcow2.copied import clear_copied
from vhostblk.block.drivers.qcow2.gather import add_range, gather_tree
from vhostblk.block.drivers.qcow2.layout import COPIED, MAX_L1_BYTES
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.snapshot_changes import take_tree
from vhostblk.block.drivers.qcow2.transfer import fill, pieces, read_table
from vhostblk.block.graph.edge import MAX_SIZE
from vhostblk.errors import os_error, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.snapshots import Snapshot

logger = logging.getLogger(__name__)


async def apply(image: Image, snapshot: Snapshot) -> None:
    """Revert the disk to a snapshot. On OSError the disk has not changed."""
    header, geometry = image.header, image.geometry
    if geometry.external_data:
        raise os_error(errno.ENOTSUP)
    if snapshot.disk_size % SECTOR or snapshot.disk_size > MAX_SIZE:
        raise os_error(errno.EINVAL)
    if geometry.l1_entries(snapshot.disk_size) * 8 > MAX_L1_BYTES:
        raise os_error(errno.EFBIG)
    await image.commit.write_all()
    pace = Pace(image, "going back to a snapshot")
    given_up, wrong = await gather_tree(image, image.tables.l1, pace)
    if wrong:
        raise OSError(errno.EIO, "the image is corrupt")
    add_range(given_up, image, header.l1_offset, 8 * header.l1_size)
    table = await _snapshot_table(image, snapshot)
    await _switch(image, snapshot.disk_size, table, pace)
    image.commit.free_many(given_up)
    try:
        await image.commit.write_all()
    except OSError as error:  # the next flush tries again
        image.check_usable()
        logger.warning("%s: could not free clusters: %s", image.file.node.filename, reason(error))


async def _snapshot_table(image: Image, snapshot: Snapshot) -> NDArray[np.uint64]:
    """Read a snapshot's L1 table with the length that the disk needs, without "copied" bits."""
    entries = image.geometry.l1_entries(snapshot.disk_size)
    table = np.zeros(entries, np.uint64)
    there = min(entries, snapshot.l1_size)
    fill(table, 0, await read_table(image.file, snapshot.l1_offset, there))
    for part in pieces(table):
        part &= ~np.uint64(COPIED)
    return table


async def _switch(image: Image, size: int, table: NDArray[np.uint64], pace: Pace) -> None:
    """Make a copy of an L1 table the active one, in the header and in memory."""
    taken = await take_tree(image, table, pace)
    try:
        await clear_copied(image, table, pace)
        await image.commit.sync()
        offset = taken.run.first << image.geometry.cluster_bits
        await image.header_file.change(size=size, l1_size=len(table), l1_offset=offset)
    except BaseException:
        taken.give_up(image)
        raise
    image.tables.clear()
    image.take_l1(table)
