# SPDX-License-Identifier: Apache-2.0
"""A sparse file in memory, on a file system of limited size such as ext4 or XFS."""

from __future__ import annotations

import errno
import os

from integration.qcow2.record import RecordingNode, apply_change
from vhostblk.block.io.flags import WriteFlags

BLOCK = 4096


class BoundedNode(RecordingNode):
    """A file to which storage is allocated in blocks, at most `room` of them.

    At first, either all blocks have storage or those that aren't zeroes. If there is no room, a
    request fails with ENOSPC; a write is then done in part.
    """

    def __init__(self, data: bytes, *, sparse: bool = False) -> None:
        super().__init__(data)
        #: Numbers of blocks that have storage.
        self.blocks = {
            start // BLOCK
            for start in range(0, len(data), BLOCK)
            if not sparse or any(data[start : start + BLOCK])
        }
        self.room = 1 << 30
        #: Whether storage can be allocated without a write.
        self.can_reserve = True

    @property
    def free(self) -> int:
        """How many more blocks the file may have."""
        return self.room - len(self.blocks)

    def _take(self, offset: int, length: int) -> int:
        """Allocate storage for a range; return how many bytes from its start on have storage."""
        for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1):
            if block not in self.blocks:
                if self.free <= 0:
                    return max(block * BLOCK - offset, 0)
                self.blocks.add(block)
        return length

    def _give_back(self, offset: int, length: int) -> None:
        self.blocks -= set(range(-(-offset // BLOCK), (offset + length) // BLOCK))

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        if flags & WriteFlags.MAY_UNMAP:
            self._give_back(offset, length)
        await super().pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        await super().pdiscard(offset, length)
        self._give_back(offset, length)

    async def reserve(self, offset: int, length: int) -> None:
        if self.can_reserve and self._take(offset, length) < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def truncate(self, size: int) -> None:
        await super().truncate(size)
        self.blocks = {block for block in self.blocks if block * BLOCK < size}

    def _write(self, offset: int, data: bytes) -> None:
        there = self._take(offset, len(data))
        if there == len(data):
            super()._write(offset, data)
            return
        apply_change(self.data, (offset, data[:there]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
