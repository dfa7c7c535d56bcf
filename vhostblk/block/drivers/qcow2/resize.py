# SPDX-License-Identifier: Apache-2.0
"""Changes of the disk's length; no requests are in flight. Shrinking is in `shrink`.

One write changes the size in the header, so a crash leaves either the old disk or the new one. When
a disk grows, its new part is prepared before that write: clusters that earlier changes left past
the end are freed, zeroes hide the content of a longer backing file, and clusters are preallocated.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block import SECTOR
from vhostblk.block.drivers.qcow2.layout import MAX_L1_BYTES, OFFSET_MASK
from vhostblk.block.drivers.qcow2.preallocate import preallocate
from vhostblk.block.drivers.qcow2.shrink import shrink
from vhostblk.block.drivers.qcow2.transfer import write_array
from vhostblk.errors import reason
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.pause import Pause

    #: Writes zeroes from one offset to another in the same cluster.
    ZeroBytes = Callable[[int, int], Awaitable[None]]

logger = logging.getLogger(__name__)

#: After this many zeroed clusters, metadata is written if too much of it is in memory.
_STEP = 4096


async def resize(
    image: Image, size: int, mode: PreallocMode, pause: Pause, zero_bytes: ZeroBytes
) -> None:
    """Change the disk's length; raises OSError, with a message for the user.

    With a mode other than "off", the new part is preallocated. With a raw data file it always is,
    as that file has the same content as the disk. If anything fails, the disk is unchanged; for
    what a failure to shrink may have removed, see `shrink`.
    """
    header = image.header
    if mode is not PreallocMode.OFF and size < image.size:
        raise OSError(errno.EINVAL, "Preallocation can't be used for shrinking an image")
    if size % SECTOR:
        raise OSError(errno.EINVAL, f"The new size must be a multiple of {SECTOR}")
    if header.nb_snapshots and header.version < 3:
        raise OSError(errno.ENOTSUP, "Can't resize a v2 image which has snapshots")
    if size < image.size:
        async with image.lock:
            await shrink(image, size)
        return
    if not _can_be_zeroed(image, size):
        text = f"Failed to zero out new clusters: {reason(errno.ENOTSUP)}"
        raise OSError(errno.ENOTSUP, text)
    if mode is PreallocMode.OFF and header.raw_data_file and size > image.size:
        mode = PreallocMode.METADATA
    await _grow(image, size, mode, pause, zero_bytes)


def _can_be_zeroed(image: Image, size: int) -> bool:
    """Return whether whole clusters of the new part can hide the backing file, if necessary."""
    return (
        image.header.version >= 3
        or not _backing_is_longer(image)
        or size <= image.geometry.clusters(image.size) << image.geometry.cluster_bits
    )


def _backing_is_longer(image: Image) -> bool:
    """Return whether the backing file extends into the new part of the disk."""
    return image.backing is not None and image.backing.node.size > image.size


async def _grow(
    image: Image, size: int, mode: PreallocMode, pause: Pause, zero_bytes: ZeroBytes
) -> None:
    geometry, old_size, data_size = image.geometry, image.size, image.data.node.size
    border = min(geometry.clusters(old_size) << geometry.cluster_bits, size)
    async with image.lock:
        await _make_room(image, geometry.l1_entries(size))
    try:
        async with image.lock:
            await _forget(image, old_size, size)
            if geometry.external_data:
                await _grow_data(image, size, mode)
            if mode is PreallocMode.OFF:
                await _hide_backing(image, size)
            else:
                zeroes = _backing_is_longer(image)
                await preallocate(image, size, mode, pause, zeroes=zeroes)
        if old_size < border and not await _reads_zero(image, old_size, border):
            await zero_bytes(old_size, border)
        async with image.lock:
            await _set_size(image, size)
    except BaseException:
        async with image.lock:
            await _undo_growth(image, size, data_size)
        raise


async def _reads_zero(image: Image, start: int, stop: int) -> bool:
    """Return whether bytes of a cluster read as zeroes, both with and without the L2 tables."""
    if image.header.raw_data_file:
        return False  # only the data file knows
    return await image.zeroer.reads_zero(start, stop - start)


async def _grow_data(image: Image, size: int, mode: PreallocMode) -> None:
    """Extend the external data file to the disk's new size; with preallocation, at least."""
    if mode is PreallocMode.OFF:
        if image.data.node.size != size:
            await image.data.truncate(size)
    elif image.data.node.size < size:
        await image.data.truncate(size, PreallocMode.OFF if mode is PreallocMode.METADATA else mode)


async def _hide_backing(image: Image, size: int) -> None:
    """Make whole clusters past the disk's end read as zeroes, up to the end of the backing file."""
    if image.backing is None:
        return
    geometry = image.geometry
    stop = geometry.clusters(min(size, image.backing.node.size))
    for first in range(geometry.clusters(image.size), stop, _STEP):
        count = min(_STEP, stop - first)
        bits = geometry.cluster_bits
        await image.zeroer.zero(first << bits, count << bits, unmap=False)
        await image.relieve()


async def _undo_growth(image: Image, size: int, data_size: int) -> None:
    """Free the clusters of the new part. Clusters that can't be freed do no harm past the end."""
    try:
        await _forget(image, image.size, size)
        if image.geometry.external_data and image.data.node.size != data_size:
            await image.data.truncate(data_size)
    except OSError as error:
        logger.warning("%s: undoing a failed resize: %s", image.file.node.filename, reason(error))


async def _set_size(image: Image, size: int) -> None:
    """Change the size in the header, after all metadata has been put on stable storage."""
    await image.commit.write()
    await image.commit.sync()
    await image.header_file.change(size=size)
    image.tables.clear()
    image.new_publisher()


async def _make_room(image: Image, entries: int) -> None:
    """Extend the L1 table to at least `entries` entries."""
    tables, header, geometry = image.tables, image.header, image.geometry
    if entries <= header.l1_size:
        return
    if entries * 8 > MAX_L1_BYTES:
        raise OSError(errno.EFBIG, f"Failed to grow the L1 table: {reason(errno.EFBIG)}")
    table = np.zeros(entries, np.uint64)
    table[: len(tables.l1)] = tables.l1
    run = await image.allocator.allocate_together(geometry.clusters(8 * entries))
    offset = run.first << geometry.cluster_bits
    old, old_clusters = header.l1_offset, geometry.clusters(8 * header.l1_size)
    try:
        await image.become_metadata(run.first, run.length, "active_l1")
        await write_array(image.file, offset, table.astype(">u8"))
        image.commit.wrote()
        await image.commit.write()  # the new table's refcounts, and the L2 tables
        await image.commit.sync()
        await image.header_file.change(l1_offset=offset, l1_size=entries)
    except BaseException:
        image.overlap.metadata_removed(run.first, run.length)
        image.commit.free(run.first, run.length)
        raise
    tables.take_l1(table)
    image.overlap.metadata_removed(old >> geometry.cluster_bits, old_clusters)
    if old_clusters and old:
        image.commit.free(old >> geometry.cluster_bits, old_clusters)


async def _forget(image: Image, start: int, stop: int) -> None:
    """Free all clusters past `start` that the L2 tables up to `stop` map.

    A table without other clusters is freed, too.
    """
    geometry, tables = image.geometry, image.tables
    first = geometry.clusters(start)
    begin, end = first >> geometry.l2_bits, geometry.l1_entries(stop)
    for index in (begin + np.flatnonzero(tables.l1[begin:end] & np.uint64(OFFSET_MASK))).tolist():
        image.check_l1(index)
        low = max(first, index << geometry.l2_bits)
        await image.zeroer.forget(low, (index + 1) << geometry.l2_bits)
        if low == index << geometry.l2_bits:
            await image.commit.write()
            _drop_table(image, index)


def _drop_table(image: Image, index: int) -> None:
    """Free an L2 table that maps no clusters any more."""
    geometry, tables = image.geometry, image.tables
    table = (int(tables.l1[index]) & OFFSET_MASK) >> geometry.cluster_bits
    for number in tables.slices_of(index):
        found = tables.slices.get(number)
        if found is not None:
            found.clean()
            tables.evict(found)
    tables.set_l1(index, 0)
    image.overlap.metadata_removed(table, 1)
    image.commit.free(table, discard=image.settings.discard_other)
