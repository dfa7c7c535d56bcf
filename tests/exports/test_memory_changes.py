# SPDX-License-Identifier: Apache-2.0
"""The memory table changes while requests are in flight."""

from __future__ import annotations

import asyncio
import os

import pytest
from msgspec.structs import replace

from tests.exports.support import frontend, handed_over
from tests.virtio_blk.support import HandNode, pattern, turns
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.errors import SetupError

pytestmark = pytest.mark.usefixtures("lane")

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH


def held_node() -> HandNode:
    node = HandNode()
    node.data[:512] = pattern(512)
    node.by_hand = True
    return node


def test_table_changes_when_requests_have_finished_and_no_new_ones_begin() -> None:
    async def run() -> None:
        async with frontend(held_node()) as front:
            await front.connect()
            await front.start()
            read = front.request(IN, want=512)
            await front.until(lambda: front.node.waiting)
            change = asyncio.create_task(
                front.device.set_memory(handed_over(front.memory.describe()))
            )
            await turns()
            later = front.request(FLUSH)
            await turns()
            assert not change.done()
            assert len(front.node.waiting) == 1
            front.node.finish()
            await change
            assert (read.status, read.data) == (Status.OK, pattern(512))
            await front.until(lambda: front.node.waiting)
            front.node.finish()
            assert await front.done(later) == Status.OK

    asyncio.run(run())


def test_region_is_plugged_in_and_used() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            region = front.memory.add_region(1 << 40, 1 << 16)
            await front.device.add_region(handed_over([region])[0])
            front.memory.write(1 << 40, pattern(512))
            content = front.memory.read(1 << 40, 512)
            assert await front.done(front.request(OUT, send=content)) == Status.OK
            await front.device.remove_region(region.guest_addr, region.size, region.user_addr)
            assert len(front.device.queues.memory.regions) == 2

    asyncio.run(run())


def test_region_that_is_no_longer_used_is_unmapped() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start()
            region = front.memory.add_region(1 << 40, 1 << 16)
            await front.device.add_region(handed_over([region])[0])
            host = front.device.queues.memory.regions[-1].mapping.address
            assert is_mapped(host)
            await front.device.remove_region(region.guest_addr, region.size, region.user_addr)
            assert not is_mapped(host)

    asyncio.run(run())


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            low, high = line.split()[0].split("-")
            if int(low, 16) <= address < int(high, 16):
                return True
    return False


def test_region_with_a_running_ring_stays() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            await front.start(0)
            await front.start(1)
            before = front.device.queues.memory
            region = front.memory.describe()[1]
            with pytest.raises(SetupError, match="not in guest memory"):
                await front.device.remove_region(region.guest_addr, region.size, region.user_addr)
            assert front.device.queues.memory is before
            for index in range(2):
                request = front.request(FLUSH, index=index)
                assert await front.done(request) == Status.OK

    asyncio.run(run())


def test_refused_table_closes_its_descriptors() -> None:
    async def run() -> None:
        async with frontend() as front:
            regions = handed_over(front.memory.describe())
            regions[1] = replace(regions[1], size=0)
            with pytest.raises(SetupError, match="size 0"):
                await front.device.set_memory(regions)
            for region in regions:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(region.fd)

    asyncio.run(run())


def test_overlapping_region_is_refused() -> None:
    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            (copy, _) = handed_over(front.memory.describe())
            os.close(_.fd)
            with pytest.raises(SetupError, match="overlap"):
                await front.device.add_region(copy)
            assert len(front.device.queues.memory.regions) == 2

    asyncio.run(run())


def test_refused_table_leaves_all_queues_where_they_were() -> None:
    """The ring of the second queue is not in the new table."""

    async def run() -> None:
        async with frontend() as front:
            await front.connect()
            for index in (0, 1):
                await front.start(index)
            low, high = handed_over(front.memory.describe())
            cut = replace(high, size=front.rings[1].used_addr - high.guest_addr)
            with pytest.raises(SetupError, match="not in guest memory"):
                await front.device.set_memory([low, cut])
            for index in (0, 1):
                read = front.request(IN, want=512, index=index)
                assert await front.done(read) == Status.OK

    asyncio.run(run())
