# SPDX-License-Identifier: Apache-2.0
"""Writes of whole clusters that are stored compressed.

Compressed clusters are packed one behind the other, at any byte offset. A host cluster has one
reference for each compressed cluster that has a part in it. Clusters that don't get shorter are
written uncompressed. Unlike in QEMU, an allocated cluster may be written again: the new data gets a
new place.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.drivers.qcow2 import compressed
from vhostblk.block.drivers.qcow2.transfer import run_all, write_bytes
from vhostblk.block.io.completion import gather
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.mapping import Entry
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.io.iovec import IoVec

#: Number of bytes of clusters, at least one cluster, to compress at the same time.
_ROUND_BYTES = 1 << 20


class _Packed(NamedTuple):
    """A cluster's compressed data, and its place."""

    offset: int
    data: bytes
    host: int
    found: L2Slice
    #: The index of its entry in the slice.
    place: int
    entry: Entry


async def write_compressed(image: Image, offset: int, iov: IoVec) -> None:
    """Write whole clusters; the last one may be cut off by the disk's end. Raises OSError."""
    size = image.geometry.cluster_size
    stop = offset + iov.nbytes
    if image.geometry.external_data:
        raise os_error(errno.ENOTSUP)
    if offset % size or (stop % size and stop != image.size):
        raise os_error(errno.EINVAL)
    step = max(_ROUND_BYTES // size, 1) * size
    for start in range(offset, stop, step):
        end = min(start + step, stop)
        await _write_round(image, start, iov.slice(start - offset, end - offset))


async def _write_round(image: Image, offset: int, iov: IoVec) -> None:
    size, kind = image.geometry.cluster_size, image.header.compression_type
    data = iov.to_bytes()  # once: a guest may change it meanwhile
    clusters = range(0, iov.nbytes, size)
    packed: dict[int, bytes | None] = {}

    async def pack(start: int) -> None:
        plain = data[start : start + size].ljust(size, b"\0")
        packed[start] = await image.in_thread(lambda: compressed.compress(kind, plain))

    await run_all([pack(start) for start in clusters])
    async with image.lock:
        image.check_usable()
        await _store(
            image, [(offset + start, each) for start in clusters if (each := packed[start])]
        )
        await image.relieve()

    async def write_plain(start: int) -> None:
        part = iov.slice(start, min(start + size, iov.nbytes))
        await image.writer.write(offset + start, part)

    await run_all([write_plain(start) for start in clusters if packed[start] is None])


async def _store(image: Image, clusters: list[tuple[int, bytes]]) -> None:
    """Write compressed clusters, then let L2 entries refer to them."""
    placed: list[_Packed] = []
    try:
        for offset, data in clusters:
            placed.append(await _place(image, offset, data))
        runs = _runs(placed)
        failures = await gather([write_bytes(image.file, host, data) for host, data in runs])
        image.commit.wrote()
        for failure in failures:
            if failure is not None:
                raise failure
    except BaseException:
        for each in placed:
            await image.allocator.free_bytes(each.host, len(each.data))
        raise
    finally:
        for each in placed:
            each.found.pins -= 1
    for each in placed:
        _link(image, each)


async def _place(image: Image, offset: int, data: bytes) -> _Packed:
    """Allocate space for a cluster's compressed data; its slice is pinned."""
    cluster = offset >> image.geometry.cluster_bits
    found = await image.ensure_table(offset)
    index = cluster & image.tables.entry_mask
    entry = image.reader.entry_at(found, index, cluster)
    found.pins += 1
    try:
        host = await image.allocator.allocate_bytes(len(data))
    except BaseException:
        found.pins -= 1
        raise
    return _Packed(offset, data, host, found, index, entry)


def _runs(placed: list[_Packed]) -> list[tuple[int, bytes]]:
    """Join contiguous data: offset in the file, and data."""
    runs: list[tuple[int, list[bytes]]] = []
    end = -1
    for each in placed:
        if each.host == end:
            runs[-1][1].append(each.data)
        else:
            runs.append((each.host, [each.data]))
        end = each.host + len(each.data)
    return [(host, b"".join(parts)) for host, parts in runs]


def _link(image: Image, packed: _Packed) -> None:
    geometry, words, index = image.geometry, packed.found.words, packed.place
    word = geometry.compressed_entry(packed.host, len(packed.data))
    if geometry.extended_l2:
        words[2 * index], words[2 * index + 1] = word, 0
    else:
        words[index] = word
    packed.found.touch(index, index + 1)
    image.publisher.update(packed.found, index, index + 1)
    image.give_up(packed.entry)
