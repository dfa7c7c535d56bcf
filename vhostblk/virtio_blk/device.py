# SPDX-License-Identifier: Apache-2.0
"""Executing virtio-blk requests on a block backend: what each type does, and its status.

The device knows neither rings nor sockets. Reads and writes are plain coroutines of the backend,
so that the queue can drive them with nothing in between; all other types end in `execute`.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.erase import eraser_of
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.lifetime import lifetime_of
from vhostblk.schema.block import IoOperationType
from vhostblk.virtio_blk.discard import RefusedError, max_payload, parse_segments
from vhostblk.virtio_blk.layout import ID_BYTES, LIFETIME, RequestType, Status
from vhostblk.virtio_blk.pieces import PIECE
from vhostblk.virtio_blk.zoned import ZONE_TYPES, ZonedRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.io.iovec import IoVec


class BlkDevice:
    """The device model shared by all queues of an export.

    `serial` is at most 20 bytes; on a device that is not `writable` nothing changes the disk.
    `zoned`: the driver has negotiated that it knows about the disk's zones. `refused`: the driver
    hasn't accepted what it has to, and gets at nothing: its requests fail.
    """

    def __init__(
        self,
        backend: BlockBackend,
        *,
        serial: bytes,
        writable: bool,
        logical_block_size: int,
        zoned: bool = False,
        refused: bool = False,
    ) -> None:
        self.backend = backend
        self._zoned = ZonedRequests(backend, writable=writable) if zoned else None
        self._refused = refused
        self.serial = serial
        self.writable = writable and not refused
        self.logical_block_size = logical_block_size

    @property
    def longest_transfer(self) -> int:
        """The longest read or write that is done in one go.

        Reads of zoned disks are: they must not leave a zone.
        """
        return PIECE if self._zoned is None else sys.maxsize

    @property
    def preadv(self) -> Callable[[int, IoVec], Coroutine[object, object, None]]:
        """What serves IN."""
        if self._refused:
            return _refuse
        return self.backend.preadv if self._zoned is None else self._zoned.preadv

    async def execute(self, kind: int, iov: IoVec, sector: int = 0) -> int:
        """Serve a request that is neither IN nor OUT; return the bytes written to its buffers.

        Raises RefusedError with the status to answer, or OSError.
        """
        if self._refused and kind != RequestType.GET_ID:  # which the engine answers by itself
            raise RefusedError(Status.IOERR)
        match kind:
            case RequestType.FLUSH:
                await self.backend.flush()
                return 0
            case RequestType.GET_ID:
                return self._identify(iov)
            case RequestType.DISCARD | RequestType.WRITE_ZEROES:
                await self._deallocate(kind, iov)
                return 0
            case RequestType.SECURE_ERASE if eraser_of(self.backend.node) is not None:
                await self._deallocate(kind, iov)
                return 0
            case RequestType.GET_LIFETIME:
                return await self._tell_lifetime(iov)
            case _ if kind in ZONE_TYPES and self._zoned is not None:
                return await self._zoned.execute(kind, iov, sector)
            case _:
                raise RefusedError(Status.UNSUPP)

    def status_of(self, error: BaseException) -> Status:
        """Translate a failure into the status that the guest sees."""
        if self._zoned is not None and (status := self._zoned.status_of(error)) is not None:
            return status
        return status_of(error)

    def report_error(self, kind: int, code: int) -> None:
        """Tell monitors that a request failed with an errno."""
        read = kind == RequestType.IN
        operation = IoOperationType.READ if read else IoOperationType.WRITE
        self.backend.report_io_error(operation, code)

    def _identify(self, iov: IoVec) -> int:
        size = min(ID_BYTES, iov.nbytes)
        iov.copy_from(self.serial.ljust(ID_BYTES, b"\0")[:size])
        return size

    async def _tell_lifetime(self, iov: IoVec) -> int:
        storage = lifetime_of(self.backend.node)
        lifetime = None if storage is None else await storage.lifetime()
        if lifetime is None:
            raise RefusedError(Status.UNSUPP)
        content = np.array(tuple(lifetime), LIFETIME).tobytes()[: iov.nbytes]
        iov.copy_from(content)
        return len(content)

    async def _deallocate(self, kind: int, iov: IoVec) -> None:
        if not self.writable:
            raise RefusedError(Status.IOERR)
        if iov.nbytes > max_payload():
            raise RefusedError(Status.IOERR)
        payload = iov.to_bytes()
        for part in parse_segments(kind, payload, self.backend.size, self.logical_block_size):
            if kind == RequestType.DISCARD:
                await self.backend.pdiscard(part.offset, part.length)
            elif kind == RequestType.SECURE_ERASE:
                await self.backend.psecure_erase(part.offset, part.length)
            else:
                flags = WriteFlags.MAY_UNMAP if part.unmap else WriteFlags.NONE
                await self.backend.pwrite_zeroes(part.offset, part.length, flags)


async def _refuse(_offset: int, _iov: IoVec) -> None:
    """Serve IN where the driver is not served."""
    raise RefusedError(Status.IOERR)


def status_of(error: BaseException) -> Status:
    """Translate a failure into a status that any guest understands."""
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, OSError) and error.errno == errno.ENOTSUP:
        return Status.UNSUPP
    return Status.IOERR
