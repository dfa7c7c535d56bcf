# SPDX-License-Identifier: Apache-2.0
"""Shrinking the disk; no requests are in flight, and the image's lock is held.

One write of one sector puts the new size into the header, together with a shorter L1 table. From
then on nothing past the new end is mapped, so no program shows old data when the disk grows again.
References to L2 tables past the end are dropped, also to those that snapshots share. An L2 table
with clusters on both sides of the new end is copied without the entries past it; then the L1 table
is copied, too.

A crash leaves the old disk or the new one, and may leak clusters. A failure leaves the old disk. In
two cases, it may nevertheless have lost data past the new end:

- There is no space for the copies. Then the entries past the new end are cleared in place first, as
  QEMU does. This fails if a snapshot shares the L2 table.
- An external data file is truncated before the header changes. If a crash left a raw data file
  long, it would show old data when the disk grows.
"""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vhostblk.block.drivers.qcow2.gather import Faults, Tables, add_entries, gather_tree
from vhostblk.block.drivers.qcow2.layout import COPIED, OFFSET_MASK
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.refcount_changes import check_refcounts
from vhostblk.block.drivers.qcow2.transfer import read_array, write_array
from vhostblk.errors import reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.allocator import Run
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.references import References

logger = logging.getLogger(__name__)

#: Errors of a file that can't be extended.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Top(NamedTuple):
    """An L1 table for the shorter disk."""

    offset: int
    entries: NDArray[np.uint64]
    #: The clusters allocated for it and for the copied L2 table; None: the old table is used.
    run: Run | None


async def shrink(image: Image, size: int) -> None:
    """Shrink the disk; raises OSError."""
    await image.commit.write()  # tables are read from the file
    if image.overlap.incomplete:
        await image.overlap.complete()
    image.check_l1(0, len(image.tables.l1))
    image.overlap.check_tree(image.tables.l1)
    kept = image.geometry.l1_entries(size)
    top, rest = await _prepare(image, size, kept)
    old_l1, old_clusters = image.header.l1_offset, image.geometry.clusters(8 * len(image.tables.l1))
    await _go_over(image, size, top)
    if rest.total:
        image.commit.free_many(rest, discard=image.settings.discard_other)
    left = image.geometry.clusters(8 * kept) if top.run is None else 0
    if left < old_clusters and old_l1:
        first = (old_l1 >> image.geometry.cluster_bits) + left
        image.commit.free(first, old_clusters - left)
    try:
        await image.commit.write()
    except OSError as error:  # the next flush tries again
        image.check_usable()
        logger.warning("%s: freeing clusters: %s", image.file.node.filename, reason(error))


async def _prepare(image: Image, size: int, kept: int) -> tuple[_Top, References]:
    """Create an L1 table of `kept` entries that maps nothing past the new end.

    Return it, and the references to drop once the header refers to it.
    """
    divided = await _divided_table(image, size)
    if divided is not None:
        rest = await _rest_of(image, kept, divided)
        try:
            return await _copy(image, kept, divided), rest
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            await _empty_in_place(image, size)
    top = _Top(image.header.l1_offset if kept else 0, image.tables.l1[:kept].copy(), None)
    return top, await _rest_of(image, kept, None)


async def _divided_table(image: Image, size: int) -> NDArray[Any] | None:
    """Return the L2 table at the new end, with the entries past the end set to 0, or None."""
    geometry, l1 = image.geometry, image.tables.l1
    first = geometry.clusters(size)
    inside = first & ((1 << geometry.l2_bits) - 1)
    offset = int(l1[first >> geometry.l2_bits]) & OFFSET_MASK if inside else 0
    if not offset:
        return None
    await image.reader.slice_at(first << geometry.cluster_bits)  # checks the L1 entry
    words = await read_array(image.file, offset, geometry.cluster_size // 8, ">u8")
    rest = words[inside * image.tables.words_per_entry :]
    if not rest.any():
        return None
    rest[:] = 0
    return words


async def _rest_of(image: Image, kept: int, divided: NDArray[Any] | None) -> References:
    """Return the references of the L1 table past the kept entries.

    `divided` is the copy of the last kept L2 table; references from it stay. Raises OSError if the
    image is corrupt.
    """
    pace = Pace(image, "shrinking the disk")
    start = kept if divided is None else kept - 1
    references, wrong = await gather_tree(image, image.tables.l1[start:], pace)
    if wrong:
        raise OSError(errno.EIO, "the image is corrupt")
    if divided is not None:
        words = divided.astype(np.uint64)
        stays = Tables(np.zeros(1, np.int64), np.array([-1]), words[None, :])
        add_entries(references, image, stays, Faults())
    await check_refcounts(image, references, -1, pace)
    return references


async def _copy(image: Image, kept: int, divided: NDArray[Any]) -> _Top:
    """Write the divided L2 table, and an L1 table that refers to it, to new clusters."""
    geometry = image.geometry
    run = await image.allocator.allocate_together(1 + geometry.clusters(8 * kept))
    entries = image.tables.l1[:kept].copy()
    entries[-1] = run.first << geometry.cluster_bits | COPIED
    offset = run.first + 1 << geometry.cluster_bits
    top = _Top(offset, entries, run)
    try:
        await image.become_metadata(run.first, 1, "active_l2")
        await image.become_metadata(run.first + 1, run.length - 1, "active_l1")
        for cluster in range(run.first, run.first + run.length):
            await image.places.make(cluster << geometry.cluster_bits)
        await write_array(image.file, run.first << geometry.cluster_bits, divided)
        await write_array(image.file, offset, entries.astype(">u8"))
        image.commit.wrote()
    except BaseException:
        _give_up(image, top)
        raise
    return top


def _give_up(image: Image, top: _Top) -> None:
    """Free the clusters of an L1 table that is not used after all."""
    if top.run is not None:
        image.overlap.metadata_removed(top.run.first, top.run.length)
        image.commit.free(top.run.first, top.run.length)


async def _empty_in_place(image: Image, size: int) -> None:
    """Free the clusters past the new end that the divided table maps."""
    geometry = image.geometry
    first = geometry.clusters(size)
    end = (first >> geometry.l2_bits) + 1 << geometry.l2_bits
    await image.zeroer.forget(first, end)
    await image.commit.write()


async def _go_over(image: Image, size: int, top: _Top) -> None:
    """Use another size and L1 table, in the header and in memory."""
    members = {"size": size, "l1_offset": top.offset, "l1_size": len(top.entries)}
    data_size = image.data.node.size
    try:
        await image.commit.write()  # refcounts
        await image.commit.sync()
        if image.geometry.external_data:
            await _cut_data(image, size)
        await image.header_file.change(**members)
    except BaseException:
        _give_up(image, top)
        if image.geometry.external_data and image.data.node.size < data_size:
            with suppress(OSError):
                await image.data.truncate(data_size)
        raise
    image.tables.clear()
    image.take_l1(top.entries)


async def _cut_data(image: Image, size: int) -> None:
    """Truncate the external data file to the disk's size, and flush it."""
    await image.data.truncate(size)
    await image.data.flush()
