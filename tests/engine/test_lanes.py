# SPDX-License-Identifier: Apache-2.0
"""An export's queues on several engine threads, and changing lanes under load."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.support import TIMEOUT, make_request
from tests.exports.support import BASE, FLUSH, handed_over, make_backend
from tests.frontend.loop_thread import LoopThread
from tests.frontend.memory import Memory
from tests.virtio_blk.support import MIB, HandNode, Pending
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import vring_config
from vhostblk.block.io.flags import WriteFlags
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.engine.iothread import IothreadOptions
from vhostblk.engine.iothreads import Iothreads
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.block.io.iovec import IoVec
    from vhostblk.exports.vhost_user_blk.device import VhostUserBlkDevice

pytestmark = pytest.mark.usefixtures("ring_kind")

QUEUES = 4
FEATURES = BASE | FLUSH | Feature.RING_EVENT_IDX.mask | Feature.RING_INDIRECT_DESC.mask


class MemoryNode(HandNode):
    """A disk in a memory file that the engine may use as well, until it is revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = os.memfd_create("disk", os.MFD_CLOEXEC)
        os.truncate(self.fd, MIB)
        self.revoked = False

    def extent_map(self) -> ExtentMap | None:
        if self.revoked:
            return None
        return ExtentMap(
            ExtentKind.LINEAR,
            MIB,
            fd=self.fd,
            writable=True,
            buffered=True,
            flush=Treatment.IGNORE,
        )

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await asyncio.sleep(0)
        iov.copy_from(os.pread(self.fd, iov.nbytes, offset))

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await asyncio.sleep(0)
        os.pwrite(self.fd, iov.to_bytes(), offset)


class Export:
    """A device on a loop of its own, and its driver on this thread."""

    def __init__(self, loop: LoopThread, names: list[str]) -> None:
        self.loop = loop
        self.node = MemoryNode()
        self.iothreads = Iothreads()
        for name in names:
            self.iothreads.define(name, IothreadOptions())
        self.memory = Memory(((0, 256 * 1024), (1 << 32, 16 * MIB)))
        driver = current_kind().driver
        self.rings = [driver(self.memory, 64, event_idx=True) for _ in range(QUEUES)]
        self.device: VhostUserBlkDevice
        loop.run(self._start(names))

    async def _start(self, names: list[str]) -> None:
        self.device = make_backend(
            self.node, self.iothreads, num_queues=QUEUES, x_vhostblk_iothreads=names
        )
        self.device.set_features(FEATURES | current_kind().features)
        await self.device.set_memory(handed_over(self.memory.describe()))
        for index, ring in enumerate(self.rings):
            self.device.set_vring_call(index, os.dup(ring.call_fd))
            config = vring_config(ring, self.memory, index)
            await self.device.start_vring(config, os.dup(ring.kick_fd))
            self.device.set_vring_enabled(index, True)

    async def _stop(self) -> None:
        await self.device.reset()
        self.iothreads.close()

    def close(self) -> None:
        self.loop.run(self._stop())
        for ring in self.rings:
            ring.close()
        self.memory.close()
        os.close(self.node.fd)


@contextmanager
def export(names: list[str]) -> Iterator[Export]:
    with LoopThread() as loop:
        served = Export(loop, names)
        try:
            yield served
        finally:
            served.close()


class Load:
    """Writes and reads with a model of what the disk must hold; each queue has its own part."""

    def __init__(self, served: Export) -> None:
        self.served = served
        self.random = random.Random(1)
        self.model = bytearray(MIB)
        self._expected: list[tuple[Pending, bytes]] = []

    def submit(self, count: int) -> None:
        """Send `count` requests to each queue, each to another sector."""
        share = MIB // 512 // QUEUES
        for index, ring in enumerate(self.served.rings):
            sectors = self.random.sample(range(share), count)
            for sector in sectors:
                place = (index * share + sector) * 512
                if self.random.random() < 0.5:
                    data = self.random.randbytes(512)
                    make_request(ring, RequestType.OUT, place // 512, send=data, kick=False)
                    self.model[place : place + 512] = data
                else:
                    read = make_request(ring, RequestType.IN, place // 512, want=512, kick=False)
                    self._expected.append((read, bytes(self.model[place : place + 512])))
            ring.kick()

    def collect(self) -> None:
        """Wait for all of them, and look at what was read."""
        for ring in self.served.rings:
            while ring.in_flight:
                ring.wait(TIMEOUT)
        for read, data in self._expected:
            assert (read.status, read.data) == (Status.OK, data)
        self._expected.clear()


@pytest.mark.parametrize("names", [["one"], ["one", "two"], ["one", "two", "three", "four"]])
def test_queues_are_spread_over_iothreads(names: list[str]) -> None:
    with export(names) as served:
        load = Load(served)
        for _ in range(5):
            load.submit(12)
            load.collect()
        statistics = served.loop.run(_statistics(served))
        assert sorted(statistics) == list(range(QUEUES))
        for queue in statistics.values():
            assert queue["read"]["operations"] + queue["write"]["operations"] == 60
            assert queue["upcalls"] == 0
        assert os.pread(served.node.fd, MIB, 0) == load.model


async def _statistics(served: Export) -> dict[int, dict[str, Any]]:
    return served.device.statistics()


def test_lanes_change_under_load() -> None:
    with export(["one", "two"]) as served:
        load = Load(served)
        for turn in range(24):
            lane = (Lane.PYTHON, Lane.EXPRESS)[turn % 2]
            load.submit(8)
            change = asyncio.run_coroutine_threadsafe(
                served.device.switch_lane(lane), served.loop.loop
            )
            load.collect()
            change.result(TIMEOUT)
        statistics = served.loop.run(_statistics(served))
        for queue in statistics.values():
            assert queue["read"]["operations"] + queue["write"]["operations"] == 24 * 8
        assert os.pread(served.node.fd, MIB, 0) == load.model


def test_map_is_revoked_under_load() -> None:
    """A node that withdraws its map while drained has all requests come up from then on."""
    with export(["one", "two"]) as served:
        load = Load(served)
        for turn in range(20):
            load.submit(8)
            served.loop.run(_drain(served, revoked=turn % 2 == 0))
            load.collect()
        assert os.pread(served.node.fd, MIB, 0) == load.model


async def _drain(served: Export, *, revoked: bool) -> None:
    device = served.device
    device.drained_begin()
    for queue in device.queues.running.values():
        await queue.wait_idle()
    served.node.revoked = revoked
    device.drained_end()


def test_memory_changes_under_load() -> None:
    with export(["one", "two"]) as served:
        load = Load(served)
        for _ in range(20):
            load.submit(8)
            served.loop.run(served.device.set_memory(handed_over(served.memory.describe())))
            load.collect()
        assert os.pread(served.node.fd, MIB, 0) == load.model
