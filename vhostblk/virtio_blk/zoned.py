# SPDX-License-Identifier: Apache-2.0
"""The requests of a zoned disk, once the driver has negotiated ZONED (VIRTIO 1.3, section 5.2.6).

The block node minds its zones (`block.zones`); here is what the device adds: the wire format, the
statuses, and reads that must not leave a sequential zone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.zones import ZoneError, ZoneFault, ZoneOp, ZoneType, zone_limits
from vhostblk.virtio_blk.discard import RefusedError
from vhostblk.virtio_blk.layout import (
    APPEND_SECTOR_BYTES,
    SECTOR_SIZE,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    RequestType,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.zones import Zone, ZonedLimits

_OPS: dict[int, ZoneOp] = {
    RequestType.ZONE_OPEN: ZoneOp.OPEN,
    RequestType.ZONE_CLOSE: ZoneOp.CLOSE,
    RequestType.ZONE_FINISH: ZoneOp.FINISH,
    RequestType.ZONE_RESET: ZoneOp.RESET,
    RequestType.ZONE_RESET_ALL: ZoneOp.RESET_ALL,
}

#: The types of requests that only zoned disks have.
ZONE_TYPES = frozenset({RequestType.ZONE_APPEND, RequestType.ZONE_REPORT, *_OPS})

_STATUSES = {
    ZoneFault.INVALID: Status.ZONE_INVALID_CMD,
    ZoneFault.UNALIGNED: Status.ZONE_UNALIGNED_WP,
    ZoneFault.OPEN_RESOURCES: Status.ZONE_OPEN_RESOURCE,
    ZoneFault.ACTIVE_RESOURCES: Status.ZONE_ACTIVE_RESOURCE,
}

#: Zones that one report describes at most: it is made while everybody else waits.
MAX_REPORTED = 4096


class ZonedRequests:
    """Serves them on `backend`; all but reports need a `writable` device."""

    def __init__(self, backend: BlockBackend, *, writable: bool) -> None:
        self._backend = backend
        self._writable = writable

    async def preadv(self, offset: int, iov: IoVec) -> None:
        """Read, from several zones only if they are conventional."""
        size = self._limits.zone_size
        count = (offset + iov.nbytes - 1) // size - offset // size + 1
        if count > MAX_REPORTED:
            raise RefusedError(Status.ZONE_INVALID_CMD)
        if count > 1:
            zones = await self._backend.zone_report(offset, count)
            if any(zone.type is ZoneType.SEQUENTIAL_REQUIRED for zone in zones):
                raise RefusedError(Status.ZONE_INVALID_CMD)
        await self._backend.preadv(offset, iov)

    async def execute(self, kind: int, iov: IoVec, sector: int) -> int:
        """Serve one of `ZONE_TYPES`; return the bytes written to its buffers.

        Raises RefusedError, or OSError: among them ZoneError.
        """
        if kind == RequestType.ZONE_REPORT:
            return await self._report(iov, sector)
        if not self._writable:
            raise RefusedError(Status.IOERR)
        if kind == RequestType.ZONE_APPEND:
            return await self._append(iov, sector)
        op, size = _OPS[kind], self._backend.size
        if op is ZoneOp.RESET_ALL:
            await self._backend.zone_mgmt(op, 0, size)
            return 0
        offset = self._inside(sector)
        await self._backend.zone_mgmt(op, offset, min(self._limits.zone_size, size - offset))
        return 0

    def status_of(self, error: BaseException) -> Status | None:
        """Return the status of an error that only zoned disks have; None: it is another."""
        return _STATUSES[error.fault] if isinstance(error, ZoneError) else None

    async def _report(self, iov: IoVec, sector: int) -> int:
        room = iov.nbytes - ZONE_REPORT_HEADER.itemsize
        if room < 0:
            raise RefusedError(Status.ZONE_INVALID_CMD)
        offset = self._inside(sector)
        count = min(room // ZONE_DESCRIPTOR.itemsize, MAX_REPORTED)
        zones = await self._backend.zone_report(offset, count)
        report = _encode_report(zones)
        iov.slice(0, len(report)).copy_from(report)
        return len(report)

    async def _append(self, iov: IoVec, sector: int) -> int:
        """Append what comes before the answer's place; `request` leaves nothing without one."""
        end = iov.nbytes - APPEND_SECTOR_BYTES
        if end < 0:
            raise RefusedError(Status.IOERR)
        data, answer = iov.slice(0, end), iov.slice(end, iov.nbytes)
        if not self._limits.max_append:
            raise RefusedError(Status.UNSUPP)
        offset = self._inside(sector)
        if end % SECTOR_SIZE:
            raise RefusedError(Status.IOERR)
        if end > self._limits.max_append:
            raise RefusedError(Status.ZONE_INVALID_CMD)
        place = await self._backend.zone_append(offset, data)
        answer.copy_from((place // SECTOR_SIZE).to_bytes(APPEND_SECTOR_BYTES, "little"))
        return APPEND_SECTOR_BYTES

    @property
    def _limits(self) -> ZonedLimits:
        limits = zone_limits(self._backend.node)
        if limits is None:  # the graph is another one by now
            raise RefusedError(Status.UNSUPP)
        return limits

    def _inside(self, sector: int) -> int:
        """Return a sector's offset in bytes; refuses those past the end."""
        if sector >= self._backend.size // SECTOR_SIZE:
            raise RefusedError(Status.ZONE_INVALID_CMD)
        return sector * SECTOR_SIZE


def _encode_report(zones: Sequence[Zone]) -> bytes:
    header = np.zeros((), ZONE_REPORT_HEADER)
    header["nr_zones"] = len(zones)
    described = np.zeros(len(zones), ZONE_DESCRIPTOR)
    for row, zone in zip(described, zones, strict=True):
        row["z_cap"] = zone.capacity // SECTOR_SIZE
        row["z_start"] = zone.start // SECTOR_SIZE
        row["z_wp"] = zone.write_pointer // SECTOR_SIZE
        row["z_type"] = zone.type
        row["z_state"] = zone.state
    return header.tobytes() + described.tobytes()
