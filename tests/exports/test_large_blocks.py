# SPDX-License-Identifier: Apache-2.0
"""A file whose blocks are larger than the disk's: small writes are read, modified and written."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.exports.support import frontend
from tests.virtio_blk.support import MIB, UNSET, HandNode, turns
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.extents import ExtentKind, ExtentMap
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from vhostblk.block.io.iovec import IoVec

pytestmark = pytest.mark.usefixtures("lane")

BLOCK = 4096


class LargeBlockNode(HandNode):
    """A disk in a file that others may use, too; it takes whole blocks only."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.limits = BlockLimits(request_alignment=BLOCK)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await super().pwritev(offset, iov, flags)
        os.pwrite(self.fd, iov.to_bytes(), offset)

    def extent_map(self) -> ExtentMap:
        return ExtentMap(
            kind=ExtentKind.LINEAR, size=self.size, fd=self.fd, alignment=BLOCK, writable=True
        )


def test_a_small_write_takes_no_other_write_back() -> None:
    async def run() -> None:
        fd = os.memfd_create("disk")
        os.truncate(fd, MIB)
        node = LargeBlockNode(fd)
        node.by_hand = True
        async with frontend(node) as front:
            await front.connect()
            await front.start()
            small = front.request(RequestType.OUT, send=b"s" * 512)
            await front.until(lambda: node.waiting)
            assert node.log == [f"read 0+{BLOCK}"]
            node.finish()
            await front.until(lambda: node.waiting)  # it is about to be written
            large = front.request(RequestType.OUT, send=b"l" * BLOCK, align=BLOCK)
            await front.until(lambda: front.block_backend.in_flight == 2 or large.status != UNSET)
            await turns()
            node.finish_all()
            assert await front.done(small) == await front.done(large) == Status.OK
        assert os.pread(fd, BLOCK, 0) in (b"l" * BLOCK, b"s" * 512 + b"l" * (BLOCK - 512))
        os.close(fd)

    asyncio.run(run())
