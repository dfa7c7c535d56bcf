# SPDX-License-Identifier: Apache-2.0
"""Requests off the fast path: unaligned, too long, in unaligned memory, or zero writes.

These functions turn such a request into requests that a driver takes: by splitting, bounce buffers,
or read-modify-write. `vhostblk.block.graph.edge` calls them for requests that its fast path doesn't
take. The bounds have been checked.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhostblk.block import SECTOR
from vhostblk.block.io.flags import WriteFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.graph.node import BlockNode
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.io.tracker import TrackedWrite

#: Maximum length of a bounce buffer. A guest may send lists that name the same memory many times,
#: so the memory that they make us allocate has to be bounded.
BOUNCE_BYTES = 1 << 20


def allocate(nbytes: int, align: int = 1) -> IoVec:
    """Return a zeroed buffer."""
    from vhostblk.block.io.iovec import IoVec  # imports numpy, which start-up doesn't need

    return IoVec.allocate(nbytes, align)


def pieces(offset: int, length: int, longest: int, align: int) -> Iterator[tuple[int, int]]:
    """Split a range into runs of at most `longest` bytes (0: unlimited), cut at aligned offsets."""
    step = max(longest // align * align, align) if longest else 0
    stop = offset + length
    while offset < stop:
        end = min(stop, offset // align * align + step) if step else stop
        yield offset, end - offset
        offset = end


def fragments(offset: int, length: int, longest: int, unit: int) -> Iterator[tuple[int, int]]:
    """Split a range at unit boundaries, in runs of at most `longest` bytes.

    All runs but the first and the last are whole units. `longest` is at least a unit, or 0 for no
    limit.
    """
    step = longest // unit * unit or length
    stop = offset + length
    while offset < stop:
        whole = (stop - offset) // unit * unit
        end = offset + (-offset % unit or min(whole, step) or stop - offset)
        end = min(end, stop)
        yield offset, end - offset
        offset = end


def _fits(iov: IoVec, node: BlockNode) -> bool:
    """Return whether the driver can take this memory directly."""
    limits = node.limits
    return iov.count <= limits.max_iov and (
        limits.memory_alignment == 1 or iov.aligned(limits.memory_alignment)
    )


def _longest(iov: IoVec, node: BlockNode, align: int) -> int:
    """Return the maximum length of a piece of this request."""
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
            bounce = allocate(high - low, node.limits.memory_alignment)
            await node.preadv(low, bounce)
            bounce.slice(start - low, start - low + length).copy_to(part)


async def write(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write any range from any memory."""
    align = node.limits.request_alignment
    if (offset | iov.nbytes) & (align - 1):
        await _read_modify_write(node, offset, iov, flags)
        return
    tracked = await _enter(node, offset, iov.nbytes)
    try:
        await _write_blocks(node, offset, iov, flags)
    finally:
        _leave(node, tracked)


async def write_aligned(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write whole blocks that the driver can take directly: the fast path with a write tracker.

    For nodes with a write tracker or with recording bitmaps, and without a count of writes.
    """
    tracker, stop = node.write_tracker, offset + iov.nbytes
    tracked = None if tracker is None else tracker.try_enter(offset, stop)
    if tracked is None and tracker is not None:
        tracked = await tracker.enter(offset, stop, serialising=False)
    try:
        await node.pwritev(offset, iov, flags)
    finally:
        if node.recorders:
            node.record_change(offset, iov.nbytes)
        _leave(node, tracked)


async def _enter(
    node: BlockNode, offset: int, length: int, *, serialising: bool = False
) -> TrackedWrite | None:
    """Wait for conflicting writes before a write to whole blocks, if the node tracks writes."""
    tracker = node.write_tracker
    if tracker is None:
        return None
    stop = offset + length
    tracked = None if serialising else tracker.try_enter(offset, stop)
    return tracked or await tracker.enter(offset, stop, serialising=serialising)


def _send_event(node: BlockNode, event: str) -> None:
    """Send the node's debug event for a write, if it takes events (`bdrv_aligned_pwritev`)."""
    if node.take_debug_event is not None:
        node.take_debug_event(event)


def _grow_size(node: BlockNode, end: int) -> None:
    """Call `written_past_end` if a successful write makes the node longer.

    Call this before recording the write in bitmaps: they ignore ranges past the node's end.
    """
    if end > node.size:
        node.written_past_end(-(-end // SECTOR) * SECTOR)


def _record_write(node: BlockNode, offset: int, length: int) -> None:
    """Record the end of a write, whether it succeeded or not."""
    node.write_generation += 1
    node.record_change(offset, length)
    _send_event(node, "pwritev_done")


def _leave(node: BlockNode, tracked: TrackedWrite | None) -> None:
    """Undo `_enter`."""
    if tracked is not None and node.write_tracker is not None:
        node.write_tracker.leave(tracked)


async def _write_blocks(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write whole blocks from any memory."""
    _send_event(node, "pwritev")
    try:
        await _write_pieces(node, offset, iov, flags)
        _grow_size(node, offset + iov.nbytes)
    finally:
        _record_write(node, offset, iov.nbytes)


async def _write_pieces(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    align = node.limits.request_alignment
    for start, length in pieces(offset, iov.nbytes, _longest(iov, node, align), align):
        part = iov.slice(start - offset, start - offset + length)
        if not _fits(part, node):
            bounce = allocate(length, node.limits.memory_alignment)
            part.copy_to(bounce)
            part = bounce
        await node.pwritev(start, part, flags)


async def _read_modify_write(node: BlockNode, offset: int, iov: IoVec, flags: WriteFlags) -> None:
    """Write part of the first and the last block, and all between them."""
    align = node.limits.request_alignment
    low = offset // align * align
    high = -(-(offset + iov.nbytes) // align) * align
    tracked = await _enter(node, low, high - low, serialising=True)
    try:
        padded = await _padded(node, offset, iov, low, high)
        await _write_blocks(node, low, padded, flags)
    finally:
        _leave(node, tracked)


async def _padded(node: BlockNode, offset: int, iov: IoVec, low: int, high: int) -> IoVec:
    """Return `iov` extended by the present data: from `low` before it, and up to `high`."""
    align = node.limits.request_alignment
    head, tail = offset - low, high - offset - iov.nbytes
    ends = [end for end, missing in (("head", head), ("tail", tail)) if missing]
    blocks = allocate(min(high - low, len(ends) * align), node.limits.memory_alignment)
    if blocks.nbytes == high - low:  # the blocks include all of the range: read once
        await _read_ends(node, ends, low, blocks)
    else:
        if head:
            await _read_ends(node, ["head"], low, blocks.slice(0, align))
        if tail:
            last = blocks.slice(blocks.nbytes - align, blocks.nbytes)
            await _read_ends(node, ["tail"], high - align, last)
    after = blocks.slice(blocks.nbytes - tail, blocks.nbytes)
    return blocks.concat([blocks.slice(0, head), iov, after])


async def _read_ends(node: BlockNode, ends: list[str], offset: int, iov: IoVec) -> None:
    """Read the first and the last block of a write, or one of them."""
    for end in ends:
        _send_event(node, f"pwritev_rmw_{end}")
    for start, length in pieces(offset, iov.nbytes, node.limits.max_transfer, 1):
        await node.preadv(start, iov.slice(start - offset, start - offset + length))
    for end in ends:
        _send_event(node, f"pwritev_rmw_after_{end}")


async def write_zeroes(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    """Make any range read as zeroes, with the driver's write-zeroes request for whole blocks."""
    align = node.limits.request_alignment
    stop = offset + length
    low = -(-offset // align) * align
    high = stop // align * align
    if low >= high:
        await _write_zero_bytes(node, offset, length, flags)
        return
    if offset < low:
        await _write_zero_bytes(node, offset, low - offset, flags)
    tracked = await _enter(node, low, high - low)
    try:
        await _write_zero_blocks(node, low, high - low, flags)
    finally:
        _leave(node, tracked)
    if high < stop:
        await _write_zero_bytes(node, high, stop - high, flags)


async def _write_zero_blocks(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    """Make whole blocks read as zeroes."""
    _send_event(node, "pwritev_zero")
    try:
        await _write_zero_pieces(node, offset, length, flags)
        _grow_size(node, offset + length)
    finally:
        _record_write(node, offset, length)


async def _write_zero_pieces(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    limits = node.limits
    unit = limits.write_zeroes_alignment or limits.request_alignment
    for start, count in fragments(offset, length, limits.max_write_zeroes, unit):
        try:
            await node.pwrite_zeroes(start, count, flags)
        except OSError as error:
            if error.errno != errno.ENOTSUP or flags & WriteFlags.NO_FALLBACK:
                raise
            await _write_buffers_of_zeroes(node, start, count, flags & ~WriteFlags.MAY_UNMAP)


async def _write_buffers_of_zeroes(
    node: BlockNode, offset: int, length: int, flags: WriteFlags
) -> None:
    limits = node.limits
    longest = min(limits.max_transfer or BOUNCE_BYTES, BOUNCE_BYTES)
    zeroes = allocate(min(length, longest), limits.memory_alignment)
    for start, count in pieces(offset, length, longest, limits.request_alignment):
        await node.pwritev(start, zeroes.slice(0, count), flags)


async def _write_zero_bytes(node: BlockNode, offset: int, length: int, flags: WriteFlags) -> None:
    """Write zeroes to parts of one or two blocks."""
    flags &= ~(WriteFlags.MAY_UNMAP | WriteFlags.NO_FALLBACK)
    await write(node, offset, allocate(length, node.limits.memory_alignment), flags)


async def discard(node: BlockNode, offset: int, length: int) -> None:
    """Discard the whole blocks of a range, in units that suit the driver."""
    limits = node.limits
    align = limits.request_alignment
    low = -(-offset // align) * align
    high = (offset + length) // align * align
    try:
        for start, count in fragments(
            low, high - low, limits.max_discard, limits.discard_alignment or align
        ):
            try:
                await node.pdiscard(start, count)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
    finally:
        node.write_generation += 1
        node.record_change(offset, length)
