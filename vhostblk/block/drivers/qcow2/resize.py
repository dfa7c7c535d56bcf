# SPDX-License-Identifier: Apache-2.0
"""Changing the disk's length; drained, the image's lock is held."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import HEADER, MAX_L1_BYTES, OFFSET_MASK
from vhostblk.block.drivers.qcow2.preallocate import preallocate
from vhostblk.block.drivers.qcow2.transfer import write_array, write_bytes
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from vhostblk.block.drivers.preallocation import Pause
    from vhostblk.block.drivers.qcow2.image import Image

_SECTOR = 512
_SIZE_FIELD = HEADER.offsets["size"]
_L1_FIELDS = HEADER.offsets["l1_size"]


async def resize(image: Image, size: int, mode: PreallocMode, pause: Pause) -> None:
    """Change the disk's length; raises OSError, with a text for the user.

    With a mode, what is added gets its place in the file; where that fails the length stays what it
    is. So does, without one, what has a raw data file: nobody can tell it from the disk.
    """
    header = image.header
    if mode is not PreallocMode.OFF and size < image.size:
        raise OSError(errno.EINVAL, "Preallocation can't be used for shrinking an image")
    if size % _SECTOR:
        raise OSError(errno.EINVAL, f"The new size must be a multiple of {_SECTOR}")
    if header.nb_snapshots and header.version < 3:
        raise OSError(errno.ENOTSUP, "Can't resize a v2 image which has snapshots")
    old_size = image.size
    if size < old_size:
        await _give_up_rest(image, size)
    else:
        await _make_room(image, image.geometry.l1_entries(size))
        await _grow_data(image, size, mode)
    await _set_size(image, size)
    if image.geometry.external_data and size < old_size:
        await image.data.truncate(size)
    if mode is PreallocMode.OFF and header.raw_data_file and size > old_size:
        mode = PreallocMode.METADATA
    if mode is PreallocMode.OFF:
        return
    try:
        await preallocate(image, old_size, mode, pause)
    except BaseException:
        await _give_up_rest(image, old_size)
        await _set_size(image, old_size)
        raise


async def _grow_data(image: Image, size: int, mode: PreallocMode) -> None:
    """Make the external data file as long as the disk will be."""
    if image.geometry.external_data and image.data.node.size != size:
        await image.data.truncate(size, PreallocMode.OFF if mode is PreallocMode.METADATA else mode)


async def _set_size(image: Image, size: int) -> None:
    await image.commit.write()
    await image.commit.sync()
    await write_bytes(image.file, _SIZE_FIELD, size.to_bytes(8, "big"))
    await image.file.flush()
    image.header.size = size
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
        raise OSError(errno.EFBIG, f"Failed to grow the L1 table: {os.strerror(errno.EFBIG)}")
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
    start = first >> geometry.l2_bits
    for index in (start + np.flatnonzero(tables.l1[start:] & np.uint64(OFFSET_MASK))).tolist():
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
