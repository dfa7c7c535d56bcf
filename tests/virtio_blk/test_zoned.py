# SPDX-License-Identifier: Apache-2.0
"""The requests of zoned disks, in both lanes through the ring."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.exports.support import make_backend
from tests.frontend.ring import Segment
from tests.virtio_blk.support import Bench, HandNode, bench, header
from vhostblk.block.drivers.null import NullNode
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.inherit import resolve
from vhostblk.schema.drivers.null import BlockdevNullZoned, BlockdevOptionsNull
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.layout import (
    CONFIG,
    CONFIG_SECURE_ERASE,
    CONFIG_ZONED,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    RequestType,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("lane")

T = RequestType
#: In sectors: the disk, its zones, what can be written of them, and the longest append.
SIZE, ZONE, CAPACITY, APPEND = 2048, 256, 192, 64
BLOCK = bytes(512)


async def open_node(**more: object) -> NullNode:
    """Open a zoned disk whose first zone is conventional, the last two read-only and offline."""
    zoned: dict[str, object] = {
        "zone_size": ZONE * 512,
        "zone_capacity": CAPACITY * 512,
        "conventional_zones": 1,
        "max_open_zones": 2,
        "max_active_zones": 3,
        "max_append_bytes": APPEND * 512,
        "read_only_zones": [6],
        "offline_zones": [7],
    }
    options = BlockdevOptionsNull(
        node_name="zoned",
        size=SIZE * 512,
        read_zeroes=True,
        x_vhostblk_zoned=BlockdevNullZoned(**(zoned | more)),  # type: ignore[arg-type]
    )
    return await NullNode.open("zoned", resolve(options), Graph())


class ZonedBench:
    """Requests one at a time; the answers are statuses."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def run(self, kind: int, sector: int = 0, *, send: bytes = b"", want: int = 0) -> int:
        request = self.bench.request(kind, sector, send=send, want=want)
        await self.bench.used()
        return request.status

    async def append(self, sector: int, length: int, cut: int = 9) -> tuple[int, int, int]:
        """Append sectors; return status, append_sector and the used length.

        The answer's 9 bytes are in two descriptors, `cut` of them in the first.
        """
        b = self.bench
        head, data = b.bytes_at(header(T.ZONE_APPEND, sector)), b.bytes_at(BLOCK * length)
        answer = b.bytes_at(bytes([0xEE] * 9))
        chain = [Segment(head, 16), Segment(data, 512 * length), Segment(answer, cut, True)]
        if cut < 9:
            chain.append(Segment(answer + cut, 9 - cut, True))
        b.chain(chain)
        ((_, used),) = await b.used()
        place, status = struct.unpack("<QB", b.memory.read(answer, 9))
        return status, place, used

    async def report(self, sector: int = 0, count: int = 8) -> np.ndarray:
        want = 64 + 64 * count
        request = self.bench.request(T.ZONE_REPORT, sector, want=want)
        ((_, used),) = await self.bench.used()
        assert request.status == Status.OK
        reported = int(np.frombuffer(request.data, ZONE_REPORT_HEADER, 1)["nr_zones"][0])
        assert used == 64 + 64 * reported + 1
        return np.frombuffer(request.data, ZONE_DESCRIPTOR, reported, 64)


@asynccontextmanager
async def zoned_bench(**more: bool) -> AsyncIterator[ZonedBench]:
    async with bench(await open_node(), zoned=more.pop("zoned", True), **more) as b:
        yield ZonedBench(b)


def test_a_report() -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            zones = await b.report()
            assert zones["z_start"].tolist() == [n * ZONE for n in range(8)]
            assert zones["z_cap"].tolist() == [ZONE] + [CAPACITY] * 7
            assert zones["z_type"].tolist() == [1] + [2] * 7
            assert zones["z_state"].tolist() == [0, 1, 1, 1, 1, 1, 13, 15]
            assert (zones["z_wp"] == zones["z_start"]).all()
            assert not zones["reserved"].any()
            assert (await b.report(2 * ZONE - 1, 3))["z_start"].tolist() == [256, 512, 768]
            assert len(await b.report(7 * ZONE, 9)) == 1
            assert len(await b.report(0, 0)) == 0
            assert await b.run(T.ZONE_REPORT, SIZE, want=128) == Status.ZONE_INVALID_CMD
            assert await b.run(T.ZONE_REPORT, 1 << 63, want=128) == Status.ZONE_INVALID_CMD
            assert await b.run(T.ZONE_REPORT, 0, want=63) == Status.ZONE_INVALID_CMD

    asyncio.run(run())


def test_the_life_of_a_zone() -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            steps = [
                (T.OUT, ZONE, BLOCK * 4, 2),
                (T.ZONE_OPEN, ZONE, b"", 3),
                (T.ZONE_CLOSE, ZONE, b"", 4),
                (T.OUT, ZONE + 4, BLOCK, 2),
                (T.ZONE_FINISH, ZONE, b"", 14),
                (T.ZONE_RESET, ZONE, b"", 1),
                (T.ZONE_OPEN, ZONE, b"", 3),
                (T.ZONE_RESET_ALL, 0, b"", 1),
            ]
            for kind, sector, send, state in steps:
                assert await b.run(kind, sector, send=send) == Status.OK
                assert (await b.report(ZONE, 1))["z_state"].tolist() == [state]

    asyncio.run(run())


@pytest.mark.parametrize("cut", [9, 8, 3, 1])
def test_appends_say_where(cut: int) -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            assert await b.append(ZONE, 8, cut) == (Status.OK, ZONE, 9)
            assert await b.append(ZONE, APPEND, cut) == (Status.OK, ZONE + 8, 9)
            assert (await b.report(ZONE, 1))["z_wp"].tolist() == [ZONE + 8 + APPEND]
            for sector, length in [(ZONE, APPEND + 1), (ZONE + 8, 1), (0, 1), (6 * ZONE, 1)]:
                status, place, used = await b.append(sector, length, cut)
                assert (status, used) == (Status.ZONE_INVALID_CMD, 1)
                assert place == 0xEEEE_EEEE_EEEE_EEEE
            counted = b.bench.queue.statistics()[0]
            assert counted["bytes"].tolist() == [0, (8 + APPEND) * 512, 0, 0]
            assert counted["invalid"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("want", [0, 7, 9, 520])
def test_appends_without_the_right_place_for_the_answer(want: int) -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            assert await b.run(T.ZONE_APPEND, ZONE, send=BLOCK, want=want) == Status.IOERR
            assert (await b.report(ZONE, 1))["z_state"].tolist() == [1]

    asyncio.run(run())


def test_what_does_not_suit_the_zones() -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            invalid = Status.ZONE_INVALID_CMD
            assert await b.run(T.OUT, ZONE + 1, send=BLOCK) == Status.ZONE_UNALIGNED_WP
            assert await b.run(T.OUT, ZONE - 1, send=BLOCK * 2) == invalid
            assert await b.run(T.OUT, 6 * ZONE, send=BLOCK) == invalid
            assert await b.run(T.IN, ZONE - 1, want=1024) == invalid
            assert await b.run(T.IN, 7 * ZONE, want=512) == invalid
            assert await b.run(T.IN, 6 * ZONE, want=512) == Status.OK
            assert await b.run(T.OUT, ZONE - 1, send=BLOCK) == Status.OK  # conventional
            for kind in (T.ZONE_OPEN, T.ZONE_CLOSE, T.ZONE_FINISH, T.ZONE_RESET):
                for sector in (0, ZONE + 1, 7 * ZONE, SIZE, 1 << 55):
                    assert await b.run(kind, sector) == invalid

    asyncio.run(run())


def test_resources() -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            for number in (1, 2):
                assert await b.run(T.ZONE_OPEN, number * ZONE) == Status.OK
            assert await b.run(T.OUT, 3 * ZONE, send=BLOCK) == Status.ZONE_OPEN_RESOURCE
            assert (await b.append(3 * ZONE, 1))[0] == Status.ZONE_OPEN_RESOURCE
            assert await b.run(T.OUT, ZONE, send=BLOCK) == Status.OK
            assert await b.run(T.ZONE_CLOSE, ZONE) == Status.OK
            assert await b.run(T.OUT, 3 * ZONE, send=BLOCK) == Status.OK
            assert await b.run(T.ZONE_OPEN, 4 * ZONE) == Status.ZONE_ACTIVE_RESOURCE

    asyncio.run(run())


def test_writes_in_a_burst_go_one_after_the_other() -> None:
    async def run() -> None:
        async with zoned_bench() as b:
            requests = [
                b.bench.request(T.OUT, ZONE + place, send=BLOCK * 8, kick=False)
                for place in range(0, 40, 8)
            ]
            b.bench.ring.kick(force=True)
            await b.bench.used(len(requests))
            assert {request.status for request in requests} == {Status.OK}
            assert (await b.report(ZONE, 1))["z_wp"].tolist() == [ZONE + 40]

    asyncio.run(run())


def test_a_read_only_device_reports() -> None:
    async def run() -> None:
        async with zoned_bench(writable=False) as b:
            assert await b.run(T.ZONE_OPEN, ZONE) == Status.IOERR
            assert (await b.append(ZONE, 1))[0] == Status.IOERR
            assert (await b.report(ZONE, 1))["z_state"].tolist() == [1]

    asyncio.run(run())


def test_a_driver_that_knows_no_zones() -> None:
    async def run() -> None:
        async with zoned_bench(zoned=False) as b:
            for kind in (T.ZONE_OPEN, T.ZONE_RESET, T.ZONE_RESET_ALL):
                assert await b.run(kind, ZONE) == Status.UNSUPP
            assert await b.run(T.ZONE_REPORT, want=128) == Status.UNSUPP
            assert (await b.append(ZONE, 1))[0] == Status.UNSUPP
            assert await b.run(T.OUT, ZONE + 1, send=BLOCK) == Status.IOERR
            assert await b.run(T.IN, ZONE - 1, want=1024) == Status.OK

    asyncio.run(run())


def test_no_appends_where_they_have_no_length() -> None:
    async def run() -> None:
        async with bench(await open_node(max_append_bytes=0), zoned=True) as b:
            assert (await ZonedBench(b).append(ZONE, 1))[0] == Status.UNSUPP

    asyncio.run(run())


def test_what_is_offered() -> None:
    async def run() -> None:
        device = make_backend(await open_node())
        features = device.device_features
        assert features & Feature.ZONED.mask
        assert not features & Feature.DISCARD.mask
        offset = CONFIG.itemsize + CONFIG_SECURE_ERASE.itemsize
        assert device.get_config(CONFIG.itemsize, 12) == bytes(12)
        zoned = struct.unpack("<5IB3x", device.get_config(offset, CONFIG_ZONED.itemsize))
        assert zoned == (ZONE, 2, 3, APPEND, 512, 1)
        plain = make_backend(HandNode())
        assert not plain.device_features & Feature.ZONED.mask
        assert plain.get_config(offset, CONFIG_ZONED.itemsize) == bytes(CONFIG_ZONED.itemsize)

    asyncio.run(run())
