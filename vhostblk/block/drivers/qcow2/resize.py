# SPDX-License-Identifier: Apache-2.0
"""Changing the disk's length; drained, the image's lock is held."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import HEADER, MAX_L1_BYTES, OFFSET_MASK
from vhostblk.block.drivers.qcow2.transfer import write_array, write_bytes

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image

_SECTOR = 512
_SIZE_FIELD = int(HEADER.fields["size"][1])  # type: ignore[index]
_L1_FIELDS = int(HEADER.fields["l1_size"][1])  # type: ignore[index]


async def resize(image: Image, size: int) -> None:
    """Change the disk's length; raises OSError, with a text for the user."""
    header = image.header
    if size % _SECTOR:
        raise OSError(errno.EINVAL, f"The new size must be a multiple of {_SECTOR}")
    if header.nb_snapshots and header.version < 3:
        raise OSError(errno.ENOTSUP, "Can't resize a v2 image which has snapshots")
    if header.bitmaps is not None:
        raise OSError(errno.ENOTSUP, "Cannot resize qcow2 images with persistent bitmaps")
    if size < image.size:
        await _give_up_rest(image, size)
    else:
        await _make_room(image, image.geometry.l1_entries(size))
    await image.commit.write()
    await image.commit.sync()
    await write_bytes(image.file, _SIZE_FIELD, size.to_bytes(8, "big"))
    await image.file.flush()
    if header.raw_data_file:
        await image.data.truncate(size)
    header.size = size
    image.tables.clear()
    image.new_publisher()


async def zero_new_part(image: Image, old_size: int) -> None:
    """Make what a disk has grown by read as zeroes, whatever lies below it.

    Whole clusters only; the caller writes zeroes up to the first one.
    """
    if image.backing is None:
        return
    start = image.geometry.clusters(old_size) << image.geometry.cluster_bits
    stop = min(image.size, image.backing.node.size)
    if start < stop:
        end = min(image.geometry.clusters(stop) << image.geometry.cluster_bits, image.size)
        await image.zeroer.zero(start, end - start, unmap=False)


async def _make_room(image: Image, entries: int) -> None:
    """Have an L1 table of so many entries at least."""
    tables, header, bits = image.tables, image.header, image.geometry.cluster_bits
    if entries <= header.l1_size:
        return
    if entries * 8 > MAX_L1_BYTES:
        raise OSError(errno.EFBIG, "The image size is too large for the cluster size")
    await image.commit.write()
    table = np.zeros(entries, np.uint64)
    table[: len(tables.l1)] = tables.l1
    run = await image.allocator.allocate_together(image.geometry.clusters(8 * entries))
    await write_array(image.file, run.first << bits, table.astype(">u8"))
    image.commit.unsynced = True
    await image.commit.write()  # its refcounts
    await image.commit.sync()
    pointer = entries.to_bytes(4, "big") + (run.first << bits).to_bytes(8, "big")
    await write_bytes(image.file, _L1_FIELDS, pointer)
    await image.file.flush()
    old, old_clusters = header.l1_offset >> bits, image.geometry.clusters(8 * header.l1_size)
    header.l1_offset, header.l1_size = run.first << bits, entries
    tables.l1 = table
    image.overlap.metadata_removed(old, old_clusters)
    image.overlap.metadata_added(run.first, run.length, "active_l1")
    if old_clusters and old:
        image.commit.free(old, old_clusters)


async def _give_up_rest(image: Image, size: int) -> None:
    """Let go of all clusters past `size`, and of the L2 tables that have no others."""
    geometry, tables = image.geometry, image.tables
    first = geometry.clusters(size)
    last = geometry.clusters(image.size)
    for index in range(first >> geometry.l2_bits, len(tables.l1)):
        if not int(tables.l1[index]) & OFFSET_MASK:
            continue
        low = max(first, index << geometry.l2_bits)
        high = min((index + 1) << geometry.l2_bits, max(last, low))
        await image.zeroer.forget(low, high)
        if low == index << geometry.l2_bits:
            await image.commit.write()
            table = int(tables.l1[index]) & OFFSET_MASK
            for number in range(
                index << tables.per_table_bits, (index + 1) << tables.per_table_bits
            ):
                found = tables.slices.get(number)
                if found is not None:
                    found.clean()
                    tables.evict(found)
            tables.set_l1(index, 0)
            image.overlap.metadata_removed(table >> geometry.cluster_bits, 1)
            image.commit.free(table >> geometry.cluster_bits, discard=image.settings.discard_other)
