# SPDX-License-Identifier: Apache-2.0
"""What is flushed is on the disk, and no error of a flush is lost."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.file.support import MIB, close, close_faulty, open_file, with_faults
from tests.block.support import fails_with, run, write_bytes
from tests.descriptors import open_fds
from tests.unsynced import directory_on_disk, unsynced_bytes
from vhostblk.block.io.completion import Completion, drive
from vhostblk.engine import load
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from vhostblk.block.drivers.posix import PosixNode


def test_a_failed_flush_poisons_all_later_ones(image: Path, aio: str) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        for _ in range(2):
            with fails_with(errno.EIO):
                await backend.flush()
        assert faults.calls == 1
        await close_faulty(graph, node, backend)

    run(main)


def test_a_failed_flush_is_known_to_both_lanes(image: Path, aio: str) -> None:
    """The map has the state of flushes; whoever flushes by the map reads it, and sets it."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        extents = backend.extent_map()
        assert extents is not None
        assert extents.sync is not None
        await backend.flush()
        extents.sync.error = errno.ENOSPC
        with fails_with(errno.ENOSPC):
            await backend.flush()
        extents.sync.error = 0
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        with fails_with(errno.EIO):
            await backend.flush()
        assert extents.sync.error == errno.EIO
        await close_faulty(graph, node, backend)

    run(main)


class HeldSyncs:
    """Stands before an engine; each fdatasync ends when the test says so."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.started: list[Completion[int]] = []
        self.begun = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def fdatasync(self, _fd: int) -> Completion[int]:
        self.started.append(Completion())
        self.begun.set()
        return self.started[-1]


async def turns(count: int = 5) -> None:
    """Let the loop do what it can do at once."""
    for _ in range(count):
        await asyncio.sleep(0)


def held_syncs(node: PosixNode) -> HeldSyncs:
    node._aio = held = HeldSyncs(node._aio)  # type: ignore[assignment]
    return held


def test_flush_fails_beside_the_one_that_gets_the_error(image: Path) -> None:
    """The kernel tells one caller of fdatasync(2) of lost data, and the other one nothing."""

    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        flushes = [asyncio.ensure_future(backend.flush()) for _ in range(3)]
        await turns()
        for number, result in enumerate((-errno.EIO, 0, 0)):
            if number < len(held.started):
                held.started[number].set_result(result)
                await turns()
        outcomes = await asyncio.gather(*flushes, return_exceptions=True)
        assert [getattr(each, "errno", None) for each in outcomes] == [errno.EIO] * 3
        await close_faulty(graph, node, backend)

    run(main)


def test_flushes_that_wait_share_the_next_call(image: Path) -> None:
    """None takes part in a call that began before it did."""

    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        first, *others = [asyncio.ensure_future(backend.flush()) for _ in range(4)]
        await turns()
        assert len(held.started) == 1
        held.started[0].set_result(0)
        await turns()
        assert first.done()
        assert not any(each.done() for each in others)
        held.started[1].set_result(0)
        await asyncio.gather(*others)
        assert len(held.started) == 2
        await close_faulty(graph, node, backend)

    run(main)


def test_error_of_a_cancelled_flush_is_noted(image: Path) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image)
        held = held_syncs(node)
        flush = asyncio.ensure_future(backend.flush())
        await turns()
        flush.cancel()
        await turns()
        held.started[0].set_result(-errno.EIO)
        with pytest.raises(asyncio.CancelledError):
            await flush
        later = asyncio.ensure_future(backend.flush())
        await turns()
        for completion in held.started[1:]:
            completion.set_result(0)
        with fails_with(errno.EIO):
            await later
        await close_faulty(graph, node, backend)

    run(main)


def started(coroutine: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
    """Run a coroutine without a task: one that waits for ever doesn't keep the loop from ending."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(_result: None, error: BaseException | None) -> None:
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    drive(coroutine, note)
    return outcome


@pytest.mark.parametrize("fails", [True, False])
def test_flush_waits_for_that_of_an_iothread(image: Path, fails: bool) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image)
        extents = backend.extent_map()
        assert extents is not None
        assert extents.sync is not None
        compiled = load()
        assert compiled is not None
        _, lib = compiled
        handle = extents.sync.handle
        descriptors = len(open_fds())
        for _ in range(2):
            held = held_syncs(node)
            assert lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            flush = started(backend.flush())
            await turns()
            assert not held.started
            assert not lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            extents.sync.error = errno.EIO if fails else 0
            await asyncio.to_thread(lib.vb_sync_end, handle, lib.VB_SYNC_ENGINE)
            if fails:
                with fails_with(errno.EIO):
                    await asyncio.wait_for(flush, 20)
                assert not held.started
            else:
                await asyncio.wait_for(held.begun.wait(), 20)
                assert not lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
                held.started[0].set_result(0)
                await asyncio.wait_for(flush, 20)
            node._aio = held._engine
            assert lib.vb_sync_try(handle, lib.VB_SYNC_ENGINE)
            lib.vb_sync_end(handle, lib.VB_SYNC_ENGINE)
        assert len(open_fds()) == descriptors + 1
        await close(graph, backend)
        assert len(open_fds()) < descriptors

    run(main)


def test_error_that_a_preallocation_gets_is_noted(image: Path, aio: str) -> None:
    """It ends with a flush of the file that is in use."""

    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio)
        faults = with_faults(node)
        faults.results = [-errno.EIO]
        with pytest.raises(OSError, match="Could not flush file to disk"):
            await node.grow(2 * MIB, PreallocMode.FULL)
        assert node.size == MIB
        with fails_with(errno.EIO):
            await backend.flush()
        await close_faulty(graph, node, backend)

    run(main)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("cache_on", [True, False])
def test_what_is_flushed_is_on_the_disk(
    tmp_path: Path, aio: str, direct: bool, cache_on: bool
) -> None:
    async def main(path: Path) -> None:
        graph, _, backend = await open_file(path, aio=aio, cache={"direct": direct})
        backend.enable_write_cache = cache_on
        await write_bytes(backend, 4096, b"x" * 8192)
        await backend.pwrite_zeroes(65536, 4096)
        await write_bytes(backend, MIB - 512, b"x" * 512)
        if cache_on:
            await backend.flush()
        assert unsynced_bytes(path) == 0
        await close(graph, backend)

    with directory_on_disk(tmp_path) as directory:
        path = directory / "disk.img"
        path.write_bytes(b"a" * MIB)
        os.sync()
        run(lambda: main(path))


@pytest.mark.parametrize("direct", [False, True])
def test_every_flush_asks_the_kernel(image: Path, aio: str, direct: bool) -> None:
    async def main() -> None:
        graph, node, backend = await open_file(image, aio=aio, cache={"direct": direct})
        faults = with_faults(node)
        await backend.flush()
        await backend.flush()
        assert faults.calls == 2
        await close_faulty(graph, node, backend)

    run(main)
