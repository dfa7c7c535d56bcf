# SPDX-License-Identifier: Apache-2.0
"""DISCARD and WRITE_ZEROES requests: their segments (VIRTIO 1.3, section 5.2.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vhostblk.virtio_blk.config import MAX_DISCARD_SEGMENTS, MAX_REQUEST_SECTORS
from vhostblk.virtio_blk.layout import (
    DISCARD_SEGMENT,
    SECTOR_SIZE,
    WRITE_ZEROES_FLAG_UNMAP,
    RequestType,
    Status,
)


@dataclass(frozen=True, slots=True)
class Range:
    """A range to discard or to zero, in bytes."""

    offset: int
    length: int
    unmap: bool


class RefusedError(Exception):
    """The request is answered with `status` and nothing is done."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


def max_payload() -> int:
    """Return the length of the longest acceptable payload, in bytes."""
    return MAX_DISCARD_SEGMENTS * DISCARD_SEGMENT.itemsize


def parse_segments(kind: int, payload: bytes, size: int, logical_block_size: int) -> list[Range]:
    """Validate a private copy of the payload, all of it before anything is done.

    Raises RefusedError: UNSUPP for unknown flags (5.2.6.2), IOERR for the rest.
    """
    count, surplus = divmod(len(payload), DISCARD_SEGMENT.itemsize)
    if surplus or not 1 <= count <= MAX_DISCARD_SEGMENTS:
        raise RefusedError(Status.IOERR)
    known = WRITE_ZEROES_FLAG_UNMAP if kind == RequestType.WRITE_ZEROES else 0
    ranges: list[Range] = []
    for sector, sectors, flags in np.frombuffer(payload, DISCARD_SEGMENT).tolist():
        if flags & ~known:
            raise RefusedError(Status.UNSUPP)
        offset, length = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
        if sectors > MAX_REQUEST_SECTORS or offset + length > size:
            raise RefusedError(Status.IOERR)
        if (offset | length) % logical_block_size:
            raise RefusedError(Status.IOERR)
        if length:
            ranges.append(Range(offset, length, bool(flags & WRITE_ZEROES_FLAG_UNMAP)))
    return ranges
