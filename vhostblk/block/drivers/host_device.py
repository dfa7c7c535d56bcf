# SPDX-License-Identifier: Apache-2.0
"""`host_device`: a block device of the host (a disk, a partition, a logical volume)."""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhostblk.block import SECTOR
from vhostblk.block.drivers.posix import FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, PosixNode
from vhostblk.block.erase import ErasesSecurely
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.node import BlockLimits, BlockStatus, Extent
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.lifetime import HasLifetime, read_lifetime
from vhostblk.block.reservable import Reservable
from vhostblk.engine.extents import Treatment
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.block.lifetime import Lifetime
    from vhostblk.engine.extents import ExtentMap

# ioctl numbers, from <linux/fs.h>.
BLKGETSIZE64 = 0x80081272
BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKSECDISCARD = 0x127D
BLKZEROOUT = 0x127F

#: No device has this sector: the kernel fails the request after checking for secure erase.
_NOWHERE = struct.pack("QQ", 1, 1)


class HostDeviceNode(PosixNode, ErasesSecurely, HasLifetime, Reservable):
    """A block device."""

    driver = "host_device"

    def _check_type(self, status: os.stat_result) -> None:
        if stat.S_ISBLK(status.st_mode):
            return
        path = self.options.filename
        if stat.S_ISCHR(status.st_mode):
            raise BlockError(f"'host_device' driver: '{path}' is a character device: not supported")
        raise BlockError(
            f"'host_device' driver requires '{path}' to be either a character or block device"
        )

    def _read_size(self) -> int:
        return int(struct.unpack("Q", fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)))[0])

    def _inspect(self) -> None:
        self._size = self._read_size()
        self._sector = max(struct.unpack("i", fcntl.ioctl(self.fd, BLKSSZGET, bytes(4)))[0], SECTOR)
        # Through the page cache, any byte range can be read and written.
        align = self._sector if self.direct else 1
        self.limits = BlockLimits(
            request_alignment=align,
            memory_alignment=align,
            discard_granularity=self._queue_limit("discard_granularity"),
            optimal_transfer=self._queue_limit("optimal_io_size"),
        )

    def _queue_limit(self, name: str) -> int:
        """Return an attribute of the queue of the device or a partition's disk; 0: unknown."""
        number = os.fstat(self.fd).st_rdev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        for queue in (device / "queue", device / ".." / "queue"):
            try:
                return int((queue / name).read_text())
            except (OSError, ValueError):
                continue
        return 0

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        if (offset | length) % self._sector:  # through the page cache
            raise os_error(errno.ENOTSUP)
        if flags & WriteFlags.MAY_UNMAP and await self._try_mode(FALLOC_PUNCH_HOLE, offset, length):
            return
        if await self._try_mode(FALLOC_ZERO_RANGE, offset, length):
            return
        await self._range_ioctl(BLKZEROOUT, offset, length)

    async def pdiscard(self, offset: int, length: int) -> None:
        low = -(-offset // self._sector) * self._sector
        high = (offset + length) // self._sector * self._sector
        if low < high:
            await self._range_ioctl(BLKDISCARD, low, high - low)

    @property
    def erases_securely(self) -> bool:
        """Whether the kernel can erase securely, which needs write access. Few devices can."""
        try:
            fcntl.ioctl(self.fd, BLKSECDISCARD, _NOWHERE)
        except OSError as error:
            return error.errno == errno.EINVAL
        return False

    async def psecure_erase(self, offset: int, length: int) -> None:
        await self._range_ioctl(BLKSECDISCARD, offset, length)

    @property
    def has_lifetime(self) -> bool:
        return read_lifetime(self._disk) is not None

    async def lifetime(self) -> Lifetime | None:
        found: list[Lifetime | None] = []
        await self._aio.call(lambda: found.append(read_lifetime(self._disk)))
        return found[0]

    @property
    def _disk(self) -> Path:
        """The sysfs directory of the device; for a partition, that of its disk."""
        number = os.fstat(self.fd).st_rdev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
        return device.parent if (device / "partition").exists() else device

    def extent_map(self) -> ExtentMap:
        """Return the map as for files, without what needs ioctls or whole sectors."""
        return replace(super().extent_map(), zero_range=False, discard=Treatment.ASK)

    async def _range_ioctl(self, request: int, offset: int, length: int) -> None:
        try:
            await self._aio.call(self._bind_ioctl(request, struct.pack("QQ", offset, length)))
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS):
                raise os_error(errno.ENOTSUP) from error
            raise

    def _bind_ioctl(self, request: int, argument: bytes) -> Callable[[], object]:
        return lambda: fcntl.ioctl(self.fd, request, argument)

    async def block_status(self, offset: int, length: int) -> Extent:
        status = BlockStatus.DATA | BlockStatus.OFFSET_VALID | BlockStatus.ALLOCATED
        return Extent(length, status, offset, self)

    async def truncate(self, size: int) -> None:
        """Update the size after the device has been resized; the driver can't resize it itself."""
        self._size = self._read_size()
        if size > self._size:
            raise OSError(errno.EINVAL, "Cannot grow device files")
