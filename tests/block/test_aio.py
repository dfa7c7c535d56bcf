# SPDX-License-Identifier: Apache-2.0
"""File I/O through io_uring: memory that the kernel has been given."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref

import numpy as np
import pytest

from vhostblk.block.aio.engine import AioUnavailableError
from vhostblk.block.aio.uring import UringEngine
from vhostblk.block.iovec import IOVEC, IoVec, address_of

BLOCK = 512


class Memory:
    """A buffer, and the list that describes it."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BLOCK, np.uint8)
        array = np.zeros(1, IOVEC)
        array["base"], array["len"] = address_of(self.bytes), BLOCK
        self.iov = IoVec.from_segments(array, self.bytes)


def test_memory_lives_as_long_as_the_kernel_may_write_to_it() -> None:
    """Whoever waited has been cancelled, and has let go of it."""

    async def main() -> None:
        try:
            engine = UringEngine()
        except AioUnavailableError as error:
            pytest.skip(str(error))
        reader, writer = os.pipe()
        memory = Memory()
        owner = weakref.ref(memory.bytes)
        completion = engine.preadv(reader, memory.iov, -1)
        del memory
        engine.flush()
        gc.collect()
        assert owner() is not None
        os.write(writer, b"x")
        assert await completion == 1
        gc.collect()
        assert owner() is None
        await engine.close()
        os.close(reader)
        os.close(writer)

    asyncio.run(main())
