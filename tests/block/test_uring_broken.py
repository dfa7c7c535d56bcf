# SPDX-License-Identifier: Apache-2.0
"""A ring that the kernel stops serving fails its requests and hangs none."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vhostblk.block.aio.engine import AioUnavailableError
from vhostblk.block.aio.uring import QUEUE_ENTRIES, SLOTS, UringEngine
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.io.completion import Completion

BLOCK = 512


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 2)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def open_engine() -> UringEngine:
    try:
        return UringEngine()
    except AioUnavailableError as error:
        pytest.skip(str(error))


def break_ring() -> None:
    """Put another file in the place of the ring, so that every io_uring_enter(2) fails."""
    found = [
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and "io_uring" in str(entry.readlink())
    ]
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, max(found))
    os.close(null)


async def results(completions: list[Completion[int]]) -> list[int]:
    return [await asyncio.wait_for(_result(completion), 30) for completion in completions]


async def _result(completion: Completion[int]) -> int:
    return await completion


def test_queued_requests_fail_and_so_do_later_ones(
    fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        engine = open_engine()
        iov = IoVec.allocate(BLOCK)
        assert await results([engine.preadv(fd, iov, 0)]) == [BLOCK]
        break_ring()
        # More than the submission queue takes, and more than there are slots.
        found = await results([engine.preadv(fd, iov, 0) for _ in range(SLOTS + QUEUE_ENTRIES)])
        assert set(found) == {-errno.EOPNOTSUPP}
        assert await results([engine.fdatasync(fd)]) == [-errno.EOPNOTSUPP]
        await engine.close()

    asyncio.run(main())
    assert [record.message for record in caplog.records] == [
        "io_uring does not work any more: Operation not supported"
    ]


def test_requests_in_flight_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        engine = open_engine()
        reader, writer = os.pipe()
        waiting = engine.preadv(reader, IoVec.allocate(BLOCK), -1)
        engine.flush()
        assert not waiting.done()
        break_ring()
        queued = engine.preadv(reader, IoVec.allocate(BLOCK), -1)
        if engine_is_deferred(engine):
            assert await results([waiting, queued]) == [-errno.EOPNOTSUPP] * 2
        else:  # the kernel completes what it has taken
            assert await results([queued]) == [-errno.EOPNOTSUPP]
            os.write(writer, b"x")
            assert await results([waiting]) == [1]
        await engine.close()
        os.close(reader)
        os.close(writer)

    asyncio.run(main())
    assert len(caplog.records) == 1


def engine_is_deferred(engine: Any) -> bool:
    """Tell whether the kernel has to be asked before it shows completions."""
    result: int = engine._lib.vb_aio_reap(engine._ring, engine._reaped, 1)
    return result < 0


def test_users_may_try_again_from_their_callbacks(
    fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        engine = open_engine()
        break_ring()
        iov = IoVec.allocate(BLOCK)

        async def retry(times: int) -> int:
            result = 0
            for _ in range(times):
                result = await engine.preadv(fd, iov, 0)
            return result

        done = await asyncio.wait_for(asyncio.gather(*(retry(5) for _ in range(300))), 30)
        assert set(done) == {-errno.EOPNOTSUPP}
        await engine.close()

    asyncio.run(main())
    assert len(caplog.records) == 1


def test_a_passing_failure_is_tried_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine = open_engine()
        real = engine._lib
        failures = [3, 3]  # so many operations are left in the queue

        class Busy:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def vb_aio_submit(self, ring: Any) -> int:
                return failures.pop() if failures else real.vb_aio_submit(ring)

        monkeypatch.setattr(engine, "_lib", Busy())
        iov = IoVec.allocate(BLOCK)
        assert await results([engine.preadv(fd, iov, 0) for _ in range(3)]) == [BLOCK] * 3
        assert not failures
        await engine.close()

    asyncio.run(main())
