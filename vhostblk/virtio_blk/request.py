# SPDX-License-Identifier: Apache-2.0
"""From descriptor chains to virtio-blk requests, a burst at once (VIRTIO 1.3, section 5.2.6).

This is the one place that validates requests. A chain becomes a record: what is asked, where its
data lies, where its status byte goes; or, where it can't be served, the status to answer. The
ordinary framing (a 16-byte header in the first descriptor, the status at the end of the last) is
taken apart with array operations. Any other framing is legal too (2.7.4.1) but rare, so each such
chain is taken apart by itself, into fresh segments behind the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhostblk.block.io.iovec import address_of, view_memory
from vhostblk.engine.layouts import IOVEC, REQUEST
from vhostblk.virtio_blk.layout import (
    APPEND_SECTOR_BYTES,
    REQUEST_HEADER,
    SECTOR_SIZE,
    RequestType,
    Status,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.batch import RequestBatch
    from vhostblk.virtqueue.memory import GuestMemory

#: The status of a request that has none yet.
PENDING = 0xFF

_HEADER_BYTES = REQUEST_HEADER.itemsize

# numpy takes ten times as long to compare with an enum's member.
_IN, _OUT = int(RequestType.IN), int(RequestType.OUT)
_ZONE_APPEND = int(RequestType.ZONE_APPEND)

#: The rare types whose data goes to the guest.
_OTHERS_INTO_GUEST = tuple(
    map(int, (RequestType.GET_ID, RequestType.GET_LIFETIME, RequestType.ZONE_REPORT))
)


class BlockRequests(NamedTuple):
    """A burst of requests: `REQUEST` records (n,), and `IOVEC` segments with their address."""

    records: NDArray[np.void]
    iovs: NDArray[np.void]
    iovs_address: int
    memory: GuestMemory


def parse(batch: RequestBatch, size: int, logical_block_size: int) -> BlockRequests:
    """Turn chains into requests on a device of `size` bytes.

    Takes over the batch's segments and changes them. Never raises on what a guest wrote.
    """
    framed = _frame_alike(batch) or _AnyFraming(batch)
    header = framed.header
    kinds = header["type"]
    into_guest = kinds == _IN
    unusual = int(kinds.max(initial=0)) > _OUT
    if unusual:
        into_guest |= np.isin(kinds, _OTHERS_INTO_GUEST)
    first = np.where(into_guest, framed.write_first, framed.read_first)
    count = np.where(into_guest, framed.write_count, framed.read_count)
    sums = np.zeros(len(framed.iovs) + 1, np.uint64)
    np.cumsum(framed.iovs["len"], out=sums[1:])
    if unusual:
        _frame_appends(framed, kinds == _ZONE_APPEND, count, sums)
    length = sums.take(first + count) - sums.take(first)

    records = np.zeros(len(batch), REQUEST)
    records["head"] = batch.heads
    records["status"] = framed.status
    records["status_addr"] = framed.status_addr
    records["type"] = kinds
    records["sector"] = header["sector"]
    records["iov_first"] = first
    records["iov_count"] = count
    records["length"] = length

    if not _all_in_range(header["sector"], length, size, logical_block_size):
        moves_data = (kinds == _IN) | (kinds == _OUT)
        outside = moves_data & ~_in_range(header["sector"], length, size, logical_block_size)
        records["status"][outside] = Status.IOERR
    return BlockRequests(records, framed.iovs, address_of(framed.iovs), batch.memory)


def _frame_appends(
    framed: _Framing | _AnyFraming,
    appends: NDArray[np.bool_],
    count: NDArray[np.int64],
    sums: NDArray[np.uint64],
) -> None:
    """Add to the data of appends, in `count`, the place for what they answer, which is behind it.

    Where there is no such place nothing is left, and what runs appends refuses that.
    """
    answers = framed.write_first
    room = sums.take(answers + framed.write_count) - sums.take(answers)
    count[appends] += framed.write_count[appends]
    count[appends & (room != APPEND_SECTOR_BYTES)] = 0


def _all_in_range(
    sector: NDArray[np.uint64], length: NDArray[np.uint64], size: int, logical_block_size: int
) -> bool:
    """Tell whether all requests would be in range even if the longest were at the end."""
    end = int(sector.max()) * SECTOR_SIZE + int(length.max())
    ragged = int(np.bitwise_or.reduce(length)) | int(np.bitwise_or.reduce(sector)) * SECTOR_SIZE
    return end <= size // SECTOR_SIZE * SECTOR_SIZE and not ragged & (logical_block_size - 1)


def _in_range(
    sector: NDArray[np.uint64], length: NDArray[np.uint64], size: int, logical_block_size: int
) -> NDArray[np.bool_]:
    """Tell which requests lie inside the device and on its blocks; no sum can overflow."""
    capacity = np.uint64(size // SECTOR_SIZE)
    block = np.uint64(logical_block_size)
    sectors = length // np.uint64(SECTOR_SIZE)
    inside = (sector <= capacity) & (sectors <= capacity - sector)
    ragged = (length | (sector * np.uint64(SECTOR_SIZE))) & (block - np.uint64(1))
    answer: NDArray[np.bool_] = inside & (ragged == 0)
    return answer


class _Framing(NamedTuple):
    """Where in each chain header, data and status are; see `parse` for the fields' use."""

    iovs: NDArray[np.void]
    header: NDArray[np.void]
    status: NDArray[np.uint8]
    status_addr: NDArray[np.uint64]
    read_first: NDArray[np.int64]
    read_count: NDArray[np.int64]
    write_first: NDArray[np.int64]
    write_count: NDArray[np.int64]


def _frame_alike(batch: RequestBatch) -> _Framing | None:
    """Take apart chains of one length that have segments of their own for header and status."""
    if batch.alike < 2:
        return None
    segments = batch.iovs.reshape(-1, batch.alike)
    length, readable = segments["len"], batch.readable
    if not (
        (length[:, 0] == _HEADER_BYTES).all()
        and (length[:, -1] == 1).all()
        and readable.all()
        and int(readable.max()) < batch.alike
    ):
        return None
    return _Framing(
        batch.iovs,
        _headers(batch.memory, segments["base"][:, 0]),
        np.full(len(batch), PENDING, np.uint8),
        segments["base"][:, -1],
        batch.first + 1,
        readable - 1,
        batch.first + readable,
        batch.alike - 1 - readable,
    )


def _headers(memory: GuestMemory, addrs: NDArray[np.uint64]) -> NDArray[np.void]:
    """Copy the headers at host addresses."""
    places = memory.span.size - _HEADER_BYTES + 1
    anywhere = np.ndarray((places,), REQUEST_HEADER, memory.span, 0, (1,))
    headers: NDArray[np.void] = anywhere[addrs.astype(np.int64) - memory.span_base]
    return headers


class _AnyFraming:
    """As `_Framing`, for chains of any form."""

    def __init__(self, batch: RequestBatch) -> None:
        self.iovs = iovs = batch.iovs
        count, readable = batch.count, batch.readable
        size = len(iovs)
        # Clipped, so that chains without descriptors index something; they are not ordinary.
        first = np.minimum(batch.first, max(size - 1, 0))
        last = np.minimum(batch.first + count - 1, max(size - 1, 0))
        length = iovs["len"]
        if size:
            ordinary = (
                (batch.faults == 0)
                & (readable > 0)
                & (count > readable)
                & (length.take(first) >= _HEADER_BYTES)
                & (length.take(last) >= 1)
            )
        else:
            ordinary = np.zeros(len(batch), np.bool_)
        self.status = np.full(len(batch), PENDING, np.uint8)
        self.status_addr = np.zeros(len(batch), np.uint64)
        self.header = np.zeros(len(batch), REQUEST_HEADER)
        if ordinary.all():
            self._take_ordinary(batch, slice(None), first, last)
            return
        some = np.flatnonzero(ordinary)
        self._take_ordinary(batch, some, first[some], last[some])
        self._take_others(batch, np.flatnonzero(~ordinary))

    def _take_ordinary(
        self,
        batch: RequestBatch,
        which: slice | NDArray[np.int64],
        first: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> None:
        base, length = self.iovs["base"], self.iovs["len"]
        self.header[which] = _headers(batch.memory, base.take(first))
        base[first] += np.uint64(_HEADER_BYTES)
        length[first] -= np.uint64(_HEADER_BYTES)
        length[last] -= np.uint64(1)
        self.status_addr[which] = base.take(last) + length.take(last)

        # Segments that held nothing but the header, or the status, drop out.
        skipped = np.zeros(len(batch), np.int64)
        skipped[which] = length.take(first) == 0
        dropped = np.zeros(len(batch), np.int64)
        dropped[which] = length.take(last) == 0
        self.read_first = batch.first + skipped
        self.read_count = batch.readable - skipped
        self.write_first = batch.first + batch.readable
        self.write_count = batch.count - batch.readable - dropped

    def _take_others(self, batch: RequestBatch, which: NDArray[np.int64]) -> None:
        extra: list[tuple[int, int]] = []
        for index in which.tolist():
            start, count = int(batch.first[index]), int(batch.count[index])
            segments: list[tuple[int, int]] = self.iovs[start : start + count].tolist()
            readable = int(batch.readable[index])
            from_guest = [s for s in segments[:readable] if s[0] and s[1]]
            to_guest = [s for s in segments[readable:] if s[1]]

            if to_guest and to_guest[-1][0]:
                base, length = to_guest.pop()
                self.status_addr[index] = base + length - 1
                to_guest.append((base, length - 1))
            head, data = _split_front(from_guest, _HEADER_BYTES)
            if batch.faults[index] or len(head) < _HEADER_BYTES or not self.status_addr[index]:
                self.status[index] = Status.IOERR
                data, to_guest = [], []
            else:
                self.header[index] = np.frombuffer(head, REQUEST_HEADER)[0]
            self.read_first[index] = len(self.iovs) + len(extra)
            self.read_count[index] = len(data)
            extra += data
            self.write_first[index] = len(self.iovs) + len(extra)
            self.write_count[index] = len(to_guest)
            extra += to_guest
        self.iovs = np.concatenate([self.iovs, np.array(extra, IOVEC)])


def _split_front(segments: list[tuple[int, int]], size: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Read the first `size` bytes of mapped segments; return them and the segments that remain."""
    front = b""
    rest: list[tuple[int, int]] = []
    for base, length in segments:
        taken = min(size - len(front), length)
        if taken:
            front += bytes(view_memory(base, taken))
        if taken < length:
            rest.append((base + taken, length - taken))
    return front, rest
