# SPDX-License-Identifier: Apache-2.0
"""The uncommon request: unaligned, too long, in awkward memory, or zeroes not to be had cheaply.

These functions turn such a request into ones that a driver takes: split, copied through a bounce
buffer, or read-modify-write. `vhostblk.block.edge` calls them for what its fast path refuses; the
bounds have been checked by then.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhostblk.block.node import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.iovec import IoVec
    from vhostblk.block.node import BlockNode

#: Longest bounce buffer. Guests may send lists that name the same memory again and again; what
#: they make us allocate has to be bounded.
BOUNCE_BYTES = 1 << 20


def _allocate(nbytes: int, align: int) -> IoVec:
    """Make a zeroed bounce buffer."""
    from vhostblk.block.iovec import IoVec  # brings numpy, which start-up has no need of

    return IoVec.allocate(nbytes, align)


def pieces(offset: int, length: int, longest: int, align: int) -> Iterator[tuple[int, int]]:
    """Split a range into runs of at most `longest` bytes (0: unlimited), cut at aligned offsets."""
    step = max(longest // align * align, align) if longest else 0
    stop = offset + length
    while offset < stop:
        end = min(stop, offset // align * align + step) if step else stop
        yield offset, end - offset
        offset = end


def _fits(iov: IoVec, node: BlockNode) -> bool:
    """Tell whether the driver takes this memory as it stands."""
    limits = node.limits
    return iov.count <= limits.max_iov and (
        limits.memory_alignment == 1 or iov.aligned(limits.memory_alignment)
    )


def _longest(iov: IoVec, node: BlockNode, align: int) -> int:
    """Return how long a piece of this request may be."""
    limit = node.limits.max_transfer
    if _fits(iov, node) and not iov.nbytes & (align - 1):
        return limit
    return min(limit, BOUNCE_BYTES) if limit else BOUNCE_BYTES


async def read(node: BlockNode, offset: int, iov: IoVec) -> None:
    """Read any range into any memory."""
    align = node.limits.request_alignment
    for start, length in pieces(offset, iov.nbytes, _longest(iov, node, align), align):
        part = iov.slice(start - offset, start - offset + length)
        if not (start | length) & (align - 1) and _fits(part, node):
            await node.preadv(start, part)
        else:
            low = start // align * align
            high = -(-(start + length) // align) * align
            bounce = _allocate(high - low, node.limits.memory_alignment)
            await node.preadv(low, bounce)
            bounce.slice(start - low, start - low + length).copy_to(part)


async def write(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write any range from any memory."""
    align = node.limits.request_alignment
    for start, length in pieces(offset, iov.nbytes, _longest(iov, node, align), align):
        part = iov.slice(start - offset, start - offset + length)
        if (start | length) & (align - 1):
            await _read_modify_write(node, start, part, flags)
            continue
        if not _fits(part, node):
            bounce = _allocate(length, node.limits.memory_alignment)
            part.copy_to(bounce)
            part = bounce
        await write_aligned(node, start, part, flags)


async def write_aligned(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write whole blocks, in turn with read-modify-write cycles on them."""
    tracker = node.write_tracker
    if tracker is None:
        await node.pwritev(offset, iov, flags)
        return
    stop = offset + iov.nbytes
    tracked = tracker.try_enter(offset, stop)
    if tracked is None:
        tracked = await tracker.enter(offset, stop, serialising=False)
    try:
        await node.pwritev(offset, iov, flags)
    finally:
        tracker.leave(tracked)


async def _read_modify_write(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write part of the first and the last block; `iov` is at most `BOUNCE_BYTES` long."""
    align = node.limits.request_alignment
    stop = offset + iov.nbytes
    low = offset // align * align
    high = -(-stop // align) * align
    assert node.write_tracker is not None, "made with the edge"
    tracked = await node.write_tracker.enter(low, high, serialising=True)
    try:
        bounce = _allocate(high - low, node.limits.memory_alignment)
        if offset > low:
            await node.preadv(low, bounce.slice(0, align))
        if stop < high and (offset == low or high - low > align):
            await node.preadv(high - align, bounce.slice(high - align - low, high - low))
        iov.copy_to(bounce.slice(offset - low, stop - low))
        await node.pwritev(low, bounce, flags)
    finally:
        node.write_tracker.leave(tracked)


async def write_zeroes(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    """Make any range read as zeroes, by the driver's own means where the blocks are whole."""
    align = node.limits.request_alignment
    stop = offset + length
    low = -(-offset // align) * align
    high = stop // align * align
    if low >= high:
        await write_zero_bytes(node, offset, length, flags)
        return
    if offset < low:
        await write_zero_bytes(node, offset, low - offset, flags)
    for start, count in pieces(low, high - low, node.limits.max_write_zeroes, align):
        await _write_zeroes_aligned(node, start, count, flags)
    if high < stop:
        await write_zero_bytes(node, high, stop - high, flags)


async def _write_zeroes_aligned(
    node: BlockNode, offset: int, length: int, flags: WriteFlags
) -> None:
    tracker = node.write_tracker
    tracked = None
    if tracker is not None:
        tracked = await tracker.enter(offset, offset + length, serialising=False)
    try:
        await node.pwrite_zeroes(offset, length, flags)
        return
    except OSError as error:
        if error.errno != errno.ENOTSUP or flags & WriteFlags.NO_FALLBACK:
            raise
    finally:
        if tracker is not None and tracked is not None:
            tracker.leave(tracked)
    await write_zero_bytes(node, offset, length, flags)


async def write_zero_bytes(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    """Write a range full of zeroes."""
    flags &= ~WriteFlags.MAY_UNMAP
    limits = node.limits
    longest = min(limits.max_transfer or BOUNCE_BYTES, BOUNCE_BYTES)
    zeroes = _allocate(min(length, longest), limits.memory_alignment)
    for start, count in pieces(offset, length, longest, limits.request_alignment):
        await write(node, start, zeroes.slice(0, count), flags)


async def discard(node: BlockNode, offset: int, length: int) -> None:
    """Forget the whole blocks of a range, as far as the driver can."""
    align = node.limits.request_alignment
    low = -(-offset // align) * align
    high = (offset + length) // align * align
    for start, count in pieces(low, high - low, node.limits.max_discard, align):
        try:
            await node.pdiscard(start, count)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return
