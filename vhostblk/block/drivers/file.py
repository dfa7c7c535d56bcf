# SPDX-License-Identifier: Apache-2.0
"""`file`: a regular file of the host."""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from vhostblk import engine as core
from vhostblk.block import SECTOR
from vhostblk.block.drivers.posix import FALLOC_UNSHARE_RANGE, PosixNode
from vhostblk.block.drivers.preallocation import resize
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.new_images import MakesFiles
from vhostblk.block.graph.node import BlockStatus, Extent
from vhostblk.block.pause import no_pause

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.schema.common import PreallocMode


class FileNode(PosixNode, MakesFiles):
    """A regular file."""

    driver = "file"

    @classmethod
    async def make_file(cls, filename: str, graph: Graph) -> None:
        from vhostblk.block.drivers.create_file import create
        from vhostblk.schema.drivers.file_create import BlockdevCreateOptionsFile

        await create(BlockdevCreateOptionsFile(filename=filename, size=0), graph, no_pause)

    def _check_type(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise BlockError(
                f"'file' driver requires '{self.options.filename}' to be a regular file"
            )

    def _read_size(self) -> int:
        # The part of the last sector past the end of the file reads as zeroes.
        return -(-os.fstat(self.fd).st_size // SECTOR) * SECTOR

    @property
    def grows_with_zeroes(self) -> bool:
        return True

    @property
    def exact_size(self) -> int:
        return min(self.size, os.fstat(self.fd).st_size)

    def _discard_granularity(self) -> int:
        return os.fstat(self.fd).st_blksize

    async def reserve(self, offset: int, length: int) -> None:
        try:
            # A write to a block that is shared by a reflink needs a new block.
            if not await self._try_mode(FALLOC_UNSHARE_RANGE, offset, length):
                await self._try_mode(0, offset, length)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Another errno fails only this call; writes may still work.

    async def grow(self, size: int, mode: PreallocMode) -> None:
        await resize(self.fd, size, mode, self._aio.call, flush=self.flush)
        self._size = self._read_size()

    async def block_status(self, offset: int, length: int) -> Extent:
        is_data, found = await self._aio.call(lambda: find_run(self.fd, offset, length))
        # Holes that are not whole blocks would make users read parts of blocks.
        align = self.limits.request_alignment
        if not is_data and found < length:
            found = found // align * align
            is_data = not found
        if is_data:
            found = min(-(-max(found, 1) // align) * align, length)
        status = BlockStatus.DATA if is_data else BlockStatus.ZERO
        status |= BlockStatus.OFFSET_VALID | BlockStatus.ALLOCATED
        if offset + found == self.size:
            status |= BlockStatus.EOF
        return Extent(found, status, offset, self)

    def known_zero(self, offset: int, length: int) -> bool:
        # Not in a thread: that would take far longer than the lookup of the extent.
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == errno.ENXIO

    def known_zeroes(self, offsets: list[int], length: int) -> list[bool]:
        compiled = core.load()
        if compiled is None:
            return super().known_zeroes(offsets, length)
        results = compiled.ffi.new("int64_t[]", len(offsets))
        compiled.lib.vb_seek_data(self.fd, len(offsets), offsets, results)
        found: list[int] = compiled.ffi.unpack(results, len(offsets))
        return [
            data >= offset + length or data == -errno.ENXIO
            for offset, data in zip(offsets, found, strict=True)
        ]


def find_run(fd: int, offset: int, length: int) -> tuple[bool, int]:
    """Return whether there is data at `offset`, and the length of that run, up to `length`."""
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
        if data > offset:
            return False, min(data - offset, length)
        return True, min(os.lseek(fd, offset, os.SEEK_HOLE) - offset, length)
    except OSError as error:
        # ENXIO: a hole up to the end of the file. Other errors: the file system doesn't know.
        return error.errno != errno.ENXIO, length
