# SPDX-License-Identifier: Apache-2.0
"""The judge of `parse`: one chain at a time, byte by byte, as the specification tells it.

VIRTIO 1.3, 5.2.6: the device-readable bytes of a chain begin with a 16-byte header, and what is
left of them is what the driver sends; the last device-writable byte is the status, and what comes
before it is what the driver wants to get: behind the data of an append, 8 bytes. Where descriptors
begin and end means nothing (2.7.4.1).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.io.iovec import view_memory
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.virtqueue.reference import Chain, Segment
    from vhostblk.virtio_blk.request import BlockRequests

_HEADER = struct.Struct("<IIQ")
_INTO_GUEST = (
    RequestType.IN,
    RequestType.GET_ID,
    RequestType.GET_LIFETIME,
    RequestType.ZONE_REPORT,
)


class Request(NamedTuple):
    """One request; `status` None: to be executed. `data` has the host address of every byte."""

    head: int
    status: int | None
    status_addr: int
    kind: int | None = None
    sector: int | None = None
    data: list[int] | None = None


def expected_request(chain: Chain, size: int, block: int) -> Request:
    """Say what a chain asks of a device of `size` bytes, in blocks of `block`."""
    to_guest = _bytes_of(chain.segments, writable=True)
    from_guest = _bytes_of(chain.segments, writable=False)
    status_addr = to_guest[-1] if to_guest else 0
    if chain.fault or len(from_guest) < _HEADER.size or not status_addr:
        return Request(chain.head, Status.IOERR, status_addr)
    header = b"".join(bytes(view_memory(address, 1)) for address in from_guest[: _HEADER.size])
    kind, _reserved, sector = _HEADER.unpack(header)
    data = to_guest[:-1] if kind in _INTO_GUEST else from_guest[_HEADER.size :]
    if kind == RequestType.ZONE_APPEND:
        data = data + to_guest[:-1] if len(to_guest) == 9 else []
    if kind in (RequestType.IN, RequestType.OUT):
        offset = sector * 512
        if offset + len(data) > size or offset % block or len(data) % block:
            return Request(chain.head, Status.IOERR, status_addr)
    return Request(chain.head, None, status_addr, kind, sector, data)


def requests_of(parsed: BlockRequests) -> list[Request]:
    """Express what `parse` found in these terms."""
    from vhostblk.virtio_blk.request import PENDING

    requests = []
    for record in parsed.records:
        status, status_addr = int(record["status"]), int(record["status_addr"])
        if status != PENDING:
            requests.append(Request(int(record["head"]), status, status_addr))
            continue
        first, count = int(record["iov_first"]), int(record["iov_count"])
        rows: list[tuple[int, int]] = parsed.iovs[first : first + count].tolist()
        data = [base + place for base, length in rows for place in range(length)]
        assert len(data) == int(record["length"])
        kind, sector = int(record["type"]), int(record["sector"])
        requests.append(Request(int(record["head"]), None, status_addr, kind, sector, data))
    return requests


def _bytes_of(segments: Sequence[Segment], *, writable: bool) -> list[int]:
    """List the address of each byte, 0 for those that are not mapped."""
    return [
        segment.host + place if segment.host else 0
        for segment in segments
        if segment.writable == writable
        for place in range(segment.length)
    ]
