# SPDX-License-Identifier: Apache-2.0
"""Bitmaps of nodes: every change is recorded, whatever way it takes, and none is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.block.support import RW, MemoryNode, backend_on, change_bitmap, options, run, write_bytes
from vhostblk.block.bitmaps import node_bitmaps
from vhostblk.block.bitmaps.node_bitmaps import (
    AddBitmap,
    ClearBitmap,
    EnableBitmap,
    MergeBitmaps,
    RemoveBitmap,
)
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.actions import perform
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits, BlockNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.completion import Completion
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.iovec import IoVec
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.schema.blockdev import BlockdevDetectZeroesOptions, BlockdevDiscardOptions

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.bitmaps.dirty_bitmap import DirtyBitmap
    from vhostblk.block.graph.node import Failures

SIZE = 64 << 10
NULL = {"driver": "null-co", "node_name": "n", "size": SIZE}


def give(node: BlockNode, name: str = "b", granularity: int = 512, **members: Any) -> DirtyBitmap:
    bitmap = node_bitmaps.make(node, name, granularity)
    for member, value in members.items():
        setattr(bitmap, member, value)
    node.bitmaps.insert(0, bitmap)
    node_bitmaps.refresh(node)
    return bitmap


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "fua", "zero", "discard", "zeroes written"]),
            st.integers(0, SIZE),
            st.integers(0, 9000),
        ),
        max_size=6,
    ),
    st.sampled_from([1, 512, 4096]),
    st.sampled_from([BlockdevDetectZeroesOptions.OFF, BlockdevDetectZeroesOptions.UNMAP]),
    st.sampled_from([0, 512]),
)
def test_what_is_changed_is_recorded(
    requests: list[tuple[str, int, int]],
    align: int,
    detect: BlockdevDetectZeroesOptions,
    threshold: int,
) -> None:
    async def main() -> None:
        node = MemoryNode(
            SIZE,
            BlockLimits(request_alignment=align),
            detect_zeroes=detect,
            discard=BlockdevDiscardOptions.UNMAP,
        )
        node.write_threshold = threshold
        _, backend = backend_on(node)
        small, off = give(node), give(node, "off", disabled=True)
        large = give(node, "large", 8192)
        changed: set[int] = set()
        for kind, offset, asked in requests:
            length = min(asked, SIZE - offset)
            if kind == "discard":
                await backend.pdiscard(offset, length)
            elif kind == "zero":
                await backend.pwrite_zeroes(offset, length)
            else:
                data = bytes([kind != "zeroes written"]) * length
                flags = WriteFlags.FUA if kind == "fua" else WriteFlags.NONE
                await backend.pwritev(offset, IoVec.from_buffers([bytearray(data)]), flags)
            # Whole blocks are written; of discards the rest is left out.
            low = offset // align * align if kind != "discard" else offset
            high = -(-(offset + length) // align) * align if kind != "discard" else offset + length
            if length:
                changed |= set(range(low // 512, -(-high // 512)))
        assert {area // 512 for area in range(0, SIZE, 512) if small.is_dirty(area)} == changed
        expected = {sector // 16 for sector in changed}
        assert {area // 8192 for area in range(0, SIZE, 8192) if large.is_dirty(area)} == expected
        assert not off.count

    run(main)


def test_a_write_that_fails_is_recorded() -> None:
    class Broken(MemoryNode):
        async def pwritev(
            self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE
        ) -> None:
            raise OSError(5, "injected")

    async def main() -> None:
        node = Broken(SIZE, BlockLimits())
        _, backend = backend_on(node)
        bitmap = give(node)
        with pytest.raises(OSError, match="injected"):
            await write_bytes(backend, 1000, b"x")
        assert list(bitmap.areas()) == [(512, 512)]

    run(main)


class Published(MemoryNode):
    """A node that lets others do everything."""

    def extent_map(self) -> ExtentMap | None:
        return ExtentMap(
            ExtentKind.LINEAR, SIZE, writable=True, discard=Treatment.FILE, flush=Treatment.FILE
        )


@pytest.mark.parametrize("discard", list(BlockdevDiscardOptions))
def test_the_map_allows_no_change_that_is_not_recorded(discard: BlockdevDiscardOptions) -> None:
    async def main() -> None:
        node = Published(SIZE, BlockLimits(), discard=discard)
        _, backend = backend_on(node)
        free = backend.extent_map()
        assert free is not None
        assert free.writable
        bitmap = give(node)
        recorded = backend.extent_map()
        assert recorded is not None
        assert not recorded.writable
        assert recorded.discard is (
            Treatment.ASK if discard is BlockdevDiscardOptions.UNMAP else Treatment.IGNORE
        )
        bitmap.disabled = True
        node_bitmaps.refresh(node)
        assert backend.extent_map() == free

    run(main)


def test_bitmaps_grow_and_shrink_with_their_node() -> None:
    async def main() -> None:
        node = MemoryNode(SIZE, BlockLimits())
        _, backend = backend_on(node, RW | Perm.RESIZE)
        backend.writes_past_end = True
        bitmap = give(node)
        await write_bytes(backend, SIZE + 1000, b"x")
        assert bitmap.size == node.size == SIZE + 1001
        assert list(bitmap.areas()) == [(SIZE + 512, 489)]

    run(main)


def test_bitmaps_that_record_nothing_grow_with_their_disk(tmp_path: Path) -> None:
    """Else they can't be merged with bitmaps that are made later."""

    async def main() -> None:
        path = tmp_path / "disk"
        path.write_bytes(bytes(SIZE))
        graph = Graph()
        node = await graph.add(options(driver="file", node_name="f", filename=str(path)))
        old = give(node, "old", disabled=True)
        old.mark(0, 1)
        await graph.resize(node, 2 * SIZE)
        new = give(node, "new")
        user = BlockBackend("user", RW)
        user.attach(graph, node)
        await write_bytes(user, 2 * SIZE - 512, b"x")
        await change_bitmap(MergeBitmaps, graph, "f", "old", ["new"])
        assert list(old.areas()) == [(0, 512), (2 * SIZE - 512, 512)]
        assert new.size == old.size
        await user.detach()
        await graph.close()

    run(main)


def test_a_burst_is_recorded() -> None:
    """With a bitmap, it is not passed on as a burst."""

    class Bursts(MemoryNode):
        takes_bursts = True

        def pwritev_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures]:
            done: Completion[Failures] = Completion()
            done.set_result([])
            return done

    async def main() -> None:
        _, backend = backend_on(node := Bursts(SIZE, BlockLimits()))
        assert backend.pwritev_burst([0], [IoVec.allocate(512)]) is not None
        bitmap = give(node)
        assert backend.pwritev_burst([0], [IoVec.allocate(512)]) is None
        bitmap.disabled = True
        node_bitmaps.refresh(node)
        assert backend.pwritev_burst([0], [IoVec.allocate(512)]) is not None

    run(main)


def test_no_write_is_lost_while_bitmaps_come_and_go() -> None:
    """A write that has started when a bitmap is added ends first; later ones are recorded."""

    async def main() -> None:
        graph = Graph()
        await graph.add(options(**NULL))
        backend = BlockBackend("test", RW)
        backend.attach(graph, graph.find("n"))
        written: list[int] = []
        done = False

        async def write() -> None:
            while not done:
                async with backend.request():
                    await write_bytes(backend, len(written) % 128 * 512, b"x")
                    written.append(len(written) % 128)
                await asyncio.sleep(0)

        task = asyncio.create_task(write())
        for _ in range(30):
            await change_bitmap(AddBitmap, graph, "n", "b", 512)
            start = len(written)
            for _ in range(7):
                await asyncio.sleep(0)
            await change_bitmap(EnableBitmap, graph, "n", "b", enabled=False)
            _, bitmap = node_bitmaps.lookup(graph, "n", "b")
            recorded = {number for number in range(128) if bitmap.is_dirty(number * 512)}
            assert recorded == set(written[start:])
            await change_bitmap(RemoveBitmap, graph, "n", "b")
        done = True
        await task
        await backend.detach()
        await graph.close()

    run(main)


def test_merging_is_all_or_nothing() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(**NULL))
        await graph.add(options(driver="null-co", node_name="m", size=2 * SIZE))
        for node, name in (("n", "a"), ("n", "b"), ("m", "c")):
            await change_bitmap(AddBitmap, graph, node, name)
        _, source = node_bitmaps.lookup(graph, "n", "a")
        _, target = node_bitmaps.lookup(graph, "n", "b")
        source.mark(0, 1)
        with pytest.raises(BlockError, match="of different sizes"):
            await change_bitmap(MergeBitmaps, graph, "n", "b", ["a", ("m", "c")])
        assert not target.count
        await change_bitmap(MergeBitmaps, graph, "n", "b", [("n", "a")])
        assert target.count == target.granularity
        for state, message in (
            ("busy", "is currently in use by another operation and cannot be used"),
            ("read_only", "is readonly and cannot be modified"),
            ("inconsistent", "is inconsistent and cannot be used"),
        ):
            setattr(target, state, True)
            with pytest.raises(BlockError, match=f"Bitmap 'b' {message}"):
                await change_bitmap(ClearBitmap, graph, "n", "b")
            setattr(target, state, False)
        await graph.close()

    run(main)


@pytest.mark.parametrize("begins", ["disabled", "enabled"])
def test_what_is_written_after_a_change_is_recorded_as_it_says(begins: str) -> None:
    """After enabling, after disabling, and after undoing either."""

    async def main() -> None:
        graph = Graph()
        node = await graph.add(options(**NULL))
        backend = BlockBackend("test", RW)
        backend.attach(graph, node)
        await change_bitmap(AddBitmap, graph, "n", "b", 512, disabled=begins == "disabled")
        _, bitmap = node_bitmaps.lookup(graph, "n", "b")
        records = begins == "enabled"
        for place, (enabled, is_undone) in enumerate(
            [
                (True, False),
                (False, True),
                (True, True),
                (False, False),
                (True, True),
                (True, False),
            ]
        ):
            action = EnableBitmap(graph, "n", "b", enabled=enabled)
            if is_undone:
                with pytest.raises(BlockError, match="not found"):
                    await perform(graph, [action, ClearBitmap(graph, "n", "missing")])
            else:
                await perform(graph, [action])
                records = enabled
            await write_bytes(backend, 512 * place, b"x")
            assert bitmap.is_dirty(512 * place) == records, (place, enabled, is_undone)
        await backend.detach()
        await graph.close()

    run(main)


def test_a_bitmap_that_goes_and_comes_back_records_on() -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(options(**NULL))
        backend = BlockBackend("test", RW)
        backend.attach(graph, node)
        await change_bitmap(AddBitmap, graph, "n", "b", 512)
        _, bitmap = node_bitmaps.lookup(graph, "n", "b")
        actions = [RemoveBitmap(graph, "n", "b"), AddBitmap(graph, "n", "b", 7)]
        with pytest.raises(BlockError, match="Granularity"):
            await perform(graph, actions)
        await write_bytes(backend, 0, b"x")
        assert bitmap.is_dirty(0)
        await backend.detach()
        await graph.close()

    run(main)
