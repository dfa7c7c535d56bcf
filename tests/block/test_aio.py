# SPDX-License-Identifier: Apache-2.0
"""File I/O through io_uring: the lifetime of memory that the kernel uses, and errors."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vhostblk.block.aio.engine import AioUnavailableError
from vhostblk.block.aio.threads import ThreadsEngine
from vhostblk.block.aio.uring import UringEngine
from vhostblk.block.io.iovec import IoVec, address_of
from vhostblk.engine.layouts import IOVEC

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 512


class Memory:
    """A buffer, and its iovec."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BLOCK, np.uint8)
        array = np.zeros(1, IOVEC)
        array["base"], array["len"] = address_of(self.bytes), BLOCK
        self.iov = IoVec.from_segments(array, self.bytes)


def test_memory_lives_as_long_as_the_kernel_may_write_to_it() -> None:
    """The task that waited was cancelled, and has dropped its reference."""

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


@pytest.mark.parametrize("kind", [UringEngine, ThreadsEngine])
def test_errors_of_the_kernel_are_told(
    kind: type[UringEngine | ThreadsEngine], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.touch()

    async def main() -> None:
        try:
            engine = kind()
        except AioUnavailableError as error:
            pytest.skip(str(error))
        pipe = os.pipe()
        reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
        memory = Memory()
        operations = [
            engine.fdatasync(pipe[0]),
            engine.fallocate(reader, 0, 0, BLOCK),
            engine.preadv(writer, memory.iov, 0),
            engine.pwritev(reader, memory.iov, 0),
        ]
        engine.flush()
        results = [await each for each in operations]
        assert results == [-errno.EINVAL, -errno.EBADF, -errno.EBADF, -errno.EBADF]
        await engine.close()
        for fd in (*pipe, reader, writer):
            os.close(fd)

    asyncio.run(main())


def test_nothing_is_flushed_once_the_engine_is_closed() -> None:
    """The ring is gone by then."""

    class Counting(UringEngine):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1
            super().flush()

    async def main() -> None:
        try:
            engine = Counting()
        except AioUnavailableError as error:
            pytest.skip(str(error))
        pipe = os.pipe()
        completion = engine.fdatasync(pipe[0])
        limit = time.monotonic() + 20
        while not completion.done():  # the flush of this turn is still to come
            engine.flush()
            assert time.monotonic() < limit
        flushes = engine.flushes
        await engine.close()
        await asyncio.sleep(0)
        assert engine.flushes == flushes
        for fd in pipe:
            os.close(fd)

    asyncio.run(main())
