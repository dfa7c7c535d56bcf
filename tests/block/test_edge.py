# SPDX-License-Identifier: Apache-2.0
"""What the layer above the drivers does for all of them."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.block.support import RW, MemoryNode, backend_on, fails_with, read_bytes, run, write_bytes
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io import shaping
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.schema.blockdev import (
    BlockdevCacheOptions,
    BlockdevDetectZeroesOptions,
    BlockdevDiscardOptions,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.block.graph.node import Failures

SIZE = 8192

limits_strategy = st.builds(
    BlockLimits,
    request_alignment=st.sampled_from([1, 64, 512]),
    memory_alignment=st.sampled_from([1, 64]),
    max_transfer=st.sampled_from([0, 512, 1024]),
    max_iov=st.sampled_from([2, 1024]),
    max_write_zeroes=st.sampled_from([0, 1024]),
)
request_strategy = st.tuples(
    st.sampled_from(["read", "write", "zero", "scattered"]),
    st.integers(0, SIZE),
    st.integers(0, 3000),
    st.integers(1, 255),
)


@settings(max_examples=60, deadline=None)
@given(limits_strategy, st.lists(request_strategy, max_size=12), st.sampled_from([None, 95]))
def test_any_request_on_any_limits_acts_like_a_byte_array(
    limits: BlockLimits, requests: list[tuple[str, int, int, int]], zeroes_error: int | None
) -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, limits)
        node.zeroes_error = zeroes_error
        _, backend = backend_on(node)
        model = bytearray(SIZE)
        for kind, offset, asked, byte in requests:
            length = min(asked, SIZE - offset)
            if kind == "read":
                assert await read_bytes(backend, offset, length) == model[offset : offset + length]
                continue
            data = bytes([byte]) * length
            if kind == "zero":
                data = bytes(length)
                await backend.pwrite_zeroes(offset, length)
            elif kind == "write":
                await write_bytes(backend, offset, data)
            else:
                parts = [bytearray(data[i : i + 97]) for i in range(0, length, 97)]
                await backend.pwritev(offset, IoVec.from_buffers(parts))
            model[offset : offset + length] = data
        assert node.data == model

    run(main)


class BurstNode(MemoryNode):
    """Takes bursts of writes, the longer ones of which it does one by one after all."""

    takes_bursts = True

    def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures] | None:
        if len(offsets) > 3:
            return None
        done: Completion[Failures] = Completion()
        for offset, iov in zip(offsets, iovs, strict=True):
            self._check(offset, iov)
            assert offset + iov.nbytes <= self.size
            self._store(offset, iov.to_bytes())
        done.set_result([])
        return done


ranges_strategy = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, 3000)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(limits_strategy, ranges_strategy, st.booleans())
def test_bursts_act_like_requests_one_by_one(
    limits: BlockLimits, ranges: list[tuple[int, int]], whole_blocks: bool
) -> None:
    async def main() -> None:
        align = limits.request_alignment
        node = BurstNode(SIZE, limits)
        _, backend = backend_on(node, request_alignment=align if whole_blocks else 1)
        model = bytearray(SIZE)
        offsets, iovs = [], []
        for number, (offset, asked) in enumerate(ranges, 1):
            if whole_blocks:
                offset, asked = offset // align * align, asked // align * align
            length = min(asked, SIZE - offset)
            offsets.append(offset)
            iovs.append(IoVec.from_buffers([bytearray([number]) * length]))
            model[offset : offset + length] = bytes([number]) * length
        done = backend.pwritev_burst(offsets, iovs)
        if done is None:
            for offset, iov in zip(offsets, iovs, strict=True):
                await backend.pwritev(offset, iov)
        else:
            assert await done == []
        assert node.data == model
        found = IoVec.from_buffers([bytearray(iov.nbytes) for iov in iovs])
        assert not any(await backend.edge.pread_segments(offsets, found))
        assert found.to_bytes() == b"".join(
            model[offset : offset + iov.nbytes] for offset, iov in zip(offsets, iovs, strict=True)
        )

    run(main)


def test_bursts_are_taken_where_nothing_watches_writes() -> None:
    async def main() -> None:
        node = BurstNode(SIZE, BlockLimits())
        graph, backend = backend_on(node)
        iovs = [IoVec.allocate(512)]
        assert backend.pwritev_burst([0], iovs) is not None
        assert backend.pwritev_burst([SIZE - 511], iovs) is None
        assert backend.pwritev_burst([-1], iovs) is None
        backend.enable_write_cache = False
        assert backend.pwritev_burst([0], iovs) is None
        backend.enable_write_cache = True
        await graph.set_write_threshold(node, SIZE)
        assert backend.pwritev_burst([0], iovs) is None

    run(main)


class UnevenNode(MemoryNode):
    """A node whose requests take a given number of turns of the event loop."""

    def __init__(self, size: int, limits: BlockLimits, turns: list[int]) -> None:
        super().__init__(size, limits)
        self._turns = turns

    async def _wait(self) -> None:
        self._turns.append(self._turns.pop(0))
        for _ in range(self._turns[-1]):
            await asyncio.sleep(0)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await super().preadv(offset, iov)
        await self._wait()

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self._wait()
        await super().pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._wait()
        await super().pwrite_zeroes(offset, length, flags)


_parts_of_blocks = st.tuples(st.integers(0, 2048), st.integers(1, 700))
_whole_blocks = st.tuples(st.integers(0, 5), st.integers(1, 2)).map(
    lambda place: (place[0] * 512, place[1] * 512)
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(_parts_of_blocks, _whole_blocks), st.booleans()), min_size=2, max_size=8
    ),
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
)
def test_concurrent_writes_to_one_block_lose_nothing(
    writes: list[tuple[tuple[int, int], bool]], turns: list[int]
) -> None:
    """Each byte has the value of one of those that wrote it, and none is undone by another."""

    async def main() -> None:
        node = UnevenNode(4096, BlockLimits(request_alignment=512), turns)
        node.data[:] = b"\xff" * 4096
        _, backend = backend_on(node)

        def begin(number: int, start: int, count: int, zeroes: bool) -> Any:
            if zeroes:
                return backend.pwrite_zeroes(start, count)
            return write_bytes(backend, start, bytes([number]) * count)

        await asyncio.gather(
            *(begin(n, *place, zeroes) for n, (place, zeroes) in enumerate(writes, 1))
        )
        for at, value in enumerate(node.data):
            writers = [
                0 if zeroes else n
                for n, ((start, count), zeroes) in enumerate(writes, 1)
                if start <= at < start + count
            ]
            assert value in (writers or [0xFF])

    run(main)


@pytest.mark.parametrize("whole_first", [False, True])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (100, 600), (511, 2)])
@pytest.mark.parametrize("block", [0, 1])
def test_writes_that_overlap_go_one_after_the_other(
    whole_first: bool, start: int, length: int, block: int
) -> None:
    """One has whole blocks, the other hasn't; the second has the same result as if alone."""

    async def main() -> None:
        node = SlowFirstWrite(SIZE, BlockLimits(request_alignment=512))
        _, backend = backend_on(node)
        ranges = [(start, b"p" * length), (512 * block, b"w" * 512)]
        if whole_first:
            ranges.reverse()
        expected = bytearray(SIZE)
        for offset, data in ranges:
            expected[offset : offset + len(data)] = data
        first = asyncio.ensure_future(write_bytes(backend, *ranges[0]))
        await node.begun.wait()
        second = asyncio.ensure_future(write_bytes(backend, *ranges[1]))
        for _ in range(20):
            await asyncio.sleep(0)
        node.held.set()
        await asyncio.gather(first, second)
        assert node.data == expected

    run(main)


def test_a_user_of_whole_blocks_needs_no_tracker() -> None:
    node = MemoryNode(SIZE, BlockLimits(request_alignment=512))
    backend_on(node, request_alignment=512)
    assert node.write_tracker is None
    backend_on(node, request_alignment=256)
    assert node.write_tracker is not None


class SlowFirstWrite(MemoryNode):
    """Its first write ends when a user of the node is asked to hold."""

    def __init__(self, size: int, limits: BlockLimits) -> None:
        super().__init__(size, limits)
        self.begun, self.held = asyncio.Event(), asyncio.Event()

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        if not self.begun.is_set():
            self.begun.set()
            await self.held.wait()
        await super().pwritev(offset, iov, flags)

    def drained_begin(self) -> None:
        self.held.set()


def test_read_modify_write_waits_for_writes_that_began_before_there_was_a_tracker() -> None:
    async def main() -> None:
        node = SlowFirstWrite(SIZE, BlockLimits(request_alignment=512))
        _, aligned = backend_on(node, request_alignment=512)

        async def request() -> None:
            async with aligned.request():
                await write_bytes(aligned, 0, b"e" * 512)

        early = asyncio.ensure_future(request())
        await node.begun.wait()
        _, unaligned = backend_on(node)
        late = [write_bytes(unaligned, at, b"l") for at in (0, 2)]
        await asyncio.wait_for(asyncio.gather(early, *late), 20)
        assert node.data[:4] == b"lele"
        assert not aligned.quiesced

    run(main)


@pytest.mark.parametrize("unaligned_first", [False, True])
def test_users_of_whole_blocks_write_parts_of_them_once_blocks_are_larger(
    unaligned_first: bool,
) -> None:
    """None waits for itself, though it was known to ask for whole blocks before."""

    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits(request_alignment=512))
        users = [backend_on(node, request_alignment=512)[1] for _ in range(2)]
        if unaligned_first:
            users.append(backend_on(node)[1])
        node.limits = BlockLimits(request_alignment=4096)
        for edge in node.parents:
            edge.refresh()

        async def write(user: BlockBackend, offset: int) -> None:
            async with user.request():
                await write_bytes(user, offset, b"x" * 512)

        writes = [write(user, 1024 * place) for place, user in enumerate(users)]
        await asyncio.wait_for(asyncio.gather(*writes), 20)
        for place in range(len(users)):
            assert node.data[1024 * place : 1024 * place + 512] == b"x" * 512

    run(main)


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (1 << 63, 8)])
def test_requests_past_the_end_are_refused(offset: int, length: int) -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        _, backend = backend_on(node)
        iov = IoVec.allocate(length)
        attempts: list[Any] = [
            backend.preadv(offset, iov),
            backend.pwritev(offset, iov),
            backend.pwrite_zeroes(offset, length),
            backend.pdiscard(offset, length),
        ]
        for attempt in attempts:
            with fails_with(errno.EIO):
                await attempt
        assert not node.log

    run(main)


def test_writes_need_the_permission() -> None:
    async def main() -> None:
        _, backend = backend_on(MemoryNode(SIZE, BlockLimits()), Perm.CONSISTENT_READ)
        assert not backend.writable
        for attempt in (
            backend.pwritev(0, IoVec.allocate(8)),
            backend.pwrite_zeroes(0, 8),
            backend.pdiscard(0, 8),
        ):
            with fails_with(errno.EPERM):
                await attempt

    run(main)


def test_fua_is_emulated_by_a_flush() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        _, backend = backend_on(node)
        await backend.pwritev(0, IoVec.allocate(8), WriteFlags.FUA)
        assert node.log == ["write", "flush"]
        await backend.pwrite_zeroes(0, 8, WriteFlags.FUA)
        assert node.log[2:] == ["zero", "flush"]

    run(main)


def test_without_write_cache_every_write_is_flushed() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        _, backend = backend_on(node)
        backend.enable_write_cache = False
        await write_bytes(backend, 0, b"x")
        assert node.log == ["write", "flush"]
        backend.enable_write_cache = True
        await write_bytes(backend, 0, b"x")
        assert node.log[2:] == ["write"]

    run(main)


def test_what_was_written_before_writes_are_counted_is_flushed() -> None:
    async def main() -> None:
        node = MemoryNode(4096, BlockLimits())
        _, backend = backend_on(node)
        await write_bytes(backend, 0, b"x")
        events: list[str] = []
        node.take_debug_event = events.append  # a flush without earlier writes isn't passed on
        for edge in node.parents:
            edge.refresh()
        for _ in range(2):
            await backend.flush()
            assert node.log == ["write", "flush"]
        await write_bytes(backend, 0, b"x")
        await backend.flush()
        assert node.log == ["write", "flush"] * 2

    run(main)


def test_no_flush_drops_flushes() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        object.__setattr__(node, "options", _with_no_flush(node.options))
        _, backend = backend_on(node)
        await backend.flush()
        assert node.log == []

    run(main)


def _with_no_flush(struct: Any) -> Any:

    return msgspec.structs.replace(struct, cache=BlockdevCacheOptions(no_flush=True))


class CountingNode(MemoryNode):
    """A node that is flushed only after writes; its flushes take a while."""

    counts_writes = True
    fails = False

    async def flush(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        self.log.append("flush")
        if self.fails:
            raise OSError(errno.EIO, "injected")

    async def pdiscard(self, offset: int, length: int) -> None:
        self.log.append("discard")


def test_a_flush_covers_no_write_that_comes_while_it_goes_on() -> None:
    async def main() -> None:
        node = CountingNode(SIZE, BlockLimits(), discard=BlockdevDiscardOptions.UNMAP)
        _, backend = backend_on(node)
        changes: list[Callable[[], Awaitable[None]]] = [
            lambda: write_bytes(backend, 0, b"x"),
            lambda: backend.pwrite_zeroes(0, 512),
            lambda: backend.pdiscard(0, 512),
        ]
        for change in changes:
            await change()
            node.log.clear()
            flush = asyncio.ensure_future(backend.flush())
            await asyncio.sleep(0)
            await change()
            await flush
            assert node.log[-1] == "flush"
            node.log.clear()
            await backend.flush()
            assert node.log == ["flush"]
            await backend.flush()
            assert node.log == ["flush"]

    run(main)


def test_a_flush_that_failed_covers_nothing() -> None:
    async def main() -> None:
        node = CountingNode(SIZE, BlockLimits())
        _, backend = backend_on(node)
        await write_bytes(backend, 0, b"x")
        node.fails = True
        for _ in range(2):
            with fails_with(errno.EIO):
                await backend.flush()
        node.fails = False
        node.log.clear()
        await backend.flush()
        assert node.log == ["flush"]

    run(main)


def test_discards_are_dropped_unless_the_option_says_unmap() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits(request_alignment=512))
        _, backend = backend_on(node)
        await backend.pdiscard(0, 1024)
        await backend.pwrite_zeroes(0, 512, WriteFlags.MAY_UNMAP)
        assert node.log == ["zero"]

        node = MemoryNode(
            SIZE,
            BlockLimits(request_alignment=512, max_discard=1024),
            discard=BlockdevDiscardOptions.UNMAP,
        )
        _, backend = backend_on(node)
        await backend.pdiscard(100, 2048)
        await backend.pwrite_zeroes(0, 512, WriteFlags.MAY_UNMAP)
        assert node.log == ["discard 512+1024", "discard 1536+512", "unmap"]

    run(main)


@pytest.mark.parametrize(
    ("mode", "expected"), [("off", "write"), ("on", "zero"), ("unmap", "unmap")]
)
def test_detect_zeroes(mode: str, expected: str) -> None:
    async def main() -> None:
        node = MemoryNode(
            SIZE,
            BlockLimits(),
            detect_zeroes=BlockdevDetectZeroesOptions(mode),
            discard=BlockdevDiscardOptions.UNMAP,
        )
        _, backend = backend_on(node)
        await write_bytes(backend, 0, bytes(100))
        await write_bytes(backend, 0, b"\0\1")
        assert node.log == [expected, "write"]

    run(main)


def test_write_zeroes_without_fallback_reports_enotsup() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        node.zeroes_error = errno.ENOTSUP
        _, backend = backend_on(node)
        with fails_with(errno.ENOTSUP):
            await backend.pwrite_zeroes(0, 512, WriteFlags.NO_FALLBACK)
        assert node.log == ["zero"]

    run(main)


def test_bounce_buffers_are_bounded() -> None:
    """A guest may name the same memory again and again."""

    async def main() -> None:
        node = MemoryNode(4 << 20, BlockLimits(request_alignment=512, max_iov=4))
        _, backend = backend_on(node, RW)
        segment = bytearray(b"\7" * (64 << 10))
        iov = IoVec.from_buffers([segment] * 40)
        await backend.pwritev(512, iov)
        assert node.data[512 : 512 + iov.nbytes] == b"\7" * iov.nbytes
        assert len(node.log) >= iov.nbytes // shaping.BOUNCE_BYTES

    run(main)


def test_aligned_requests_reach_the_driver_without_another_coroutine() -> None:
    node = MemoryNode(SIZE, BlockLimits())
    _, backend = backend_on(node)
    coroutine = backend.preadv(0, IoVec.allocate(512))
    assert getattr(coroutine, "__qualname__", "") == "MemoryNode.preadv"
    coroutine.close()
