# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed with requests in flight; the next one completes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import FEATURES, PACKED_FEATURES, BlkDriver
from tests.frontend.connection import ConnectionClosedError
from tests.frontend.launch import IMAGE_SIZE, Daemon, Program, raw_file
from tests.frontend.layout.virtio_blk import Feature, RequestType, Status
from tests.frontend.layout.virtqueue import INFLIGHT_DESC_PACKED, INFLIGHT_DESC_SPLIT
from tests.frontend.memory import MIB, Memory
from tests.virtio_blk.lanes import lane

if TYPE_CHECKING:
    from pathlib import Path

    from tests.frontend.layout.vhost_user import InflightArea
    from vhostblk.virtio_blk.lane import Lane

__all__ = ["lane"]

EXPORT = "id=export,node-name=disk,num-queues=2,writable=on"
#: A disk that takes an hour for a request.
STUCK = [f"driver=null-co,node-name=disk,size={IMAGE_SIZE},latency-ns=3600000000000"]
OUT = RequestType.OUT


@pytest.fixture(params=[FEATURES, PACKED_FEATURES], ids=["split", "packed"])
def features(request: pytest.FixtureRequest) -> int:
    """The features that the driver acknowledges, for split or packed rings."""
    return int(request.param)


def in_flight(driver: BlkDriver, queue: int = 0) -> int:
    """Return the number of requests in the back-end's record."""
    area = driver.inflight
    assert area is not None
    kind = INFLIGHT_DESC_PACKED if driver.has(Feature.RING_PACKED) else INFLIGHT_DESC_SPLIT
    length = area.mmap_size // area.num_queues
    # The header is as long as an entry, in both kinds.
    content = np.memmap(_path(area), np.uint8, "r", queue * length, (length,))
    entries = content[: (area.queue_size + 1) * kind.itemsize].view(kind)[1:]
    return int((entries["inflight"] == 1).sum())


def wait_noted(driver: BlkDriver, count: int, queue: int = 0) -> None:
    """Wait until the record has this number of requests."""
    wait_until(lambda: in_flight(driver, queue) == count)


def _path(area: InflightArea) -> str:
    return f"/proc/self/fd/{area.fd}"


@pytest.mark.usefixtures("lane")
def test_requests_in_flight_at_the_death_are_done_by_the_next_process(
    tmp_path: Path, image: Path, memory: Memory, features: int
) -> None:
    blocks = {(queue, n): bytes([1 + 16 * queue + n]) * 4096 for queue in (0, 1) for n in range(8)}
    with Daemon(Program.VHOSTBLK, tmp_path, STUCK, EXPORT, inherited=False) as first:
        with BlkDriver(
            first.connect(), memory, features=features, num_queues=2, start=0xFFFC, inflight=True
        ) as driver:
            for (queue, n), block in blocks.items():
                driver.submit(OUT, 4096 * (8 * queue + n), data_out=[block], queue=queue)
            for queue in (0, 1):
                driver.kick(queue)
                wait_noted(driver, 8, queue)
            first.kill()
            with pytest.raises(ConnectionClosedError):
                driver.connection.sync()
            late = driver.submit(RequestType.FLUSH)
            driver.kick()
            with Daemon(Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False) as d:
                driver.reconnect(d.connect())
                done = driver.drain(0) + driver.drain(1)
                assert len(done) == 17
                assert {request.status for request, _ in done} == {Status.OK}
                assert late.used_length == 1
                assert driver.read(0, 8 * 4096) == b"".join(blocks[0, n] for n in range(8))
                assert driver.read(8 * 4096, 4096, queue=1) == blocks[1, 0]
                assert in_flight(driver, 0) == 0
                assert driver.stop() == [ring.base for ring in driver.rings]
                assert d.stop() == 0
    assert image.read_bytes()[: 16 * 4096] == b"".join(blocks.values())


@pytest.mark.usefixtures("lane")
def test_a_vring_that_stops_at_once_has_done_what_was_left(
    tmp_path: Path, image: Path, memory: Memory, features: int
) -> None:
    """The front-end stops the vring before it has enabled it, and relies on the base."""
    blocks = [bytes([1 + n]) * 4096 for n in range(4)]
    with Daemon(Program.VHOSTBLK, tmp_path, STUCK, EXPORT, inherited=False) as first:
        with BlkDriver(first.connect(), memory, features=features, inflight=True) as driver:
            for n, block in enumerate(blocks):
                driver.submit(OUT, 4096 * n, data_out=[block])
            driver.kick()
            wait_noted(driver, 4)
            first.kill()
            with Daemon(Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False) as d:
                driver.reconnect(d.connect(), enable=False)
                base = driver.connection.get_vring_base(0)
                assert image.read_bytes()[: 4 * 4096] == b"".join(blocks)
                assert [request.status for request, _ in driver.poll()] == [Status.OK] * 4
                assert base == driver.rings[0].base
                driver.rings[0].attach(driver.connection, 0, base=base)
                assert driver.read(0, 4 * 4096) == b"".join(blocks)


@pytest.mark.usefixtures("lane")
def test_a_corrupt_record_ends_the_connection_and_nothing_else(
    tmp_path: Path, image: Path, memory: Memory, features: int
) -> None:
    with Daemon(Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False) as daemon:
        with BlkDriver(daemon.connect(), memory, features=features, inflight=True) as driver:
            assert driver.inflight is not None
            driver.write(0, b"x" * 512)
            content = np.memmap(_path(driver.inflight), "<u2", "r+")
            content[4] = 99  # the version
            with pytest.raises(Exception, match="SET_VRING_KICK"):
                driver.reconnect(daemon.connect())
        assert "record of version 99" in daemon.output()
        other = Memory(((0, 8 * MIB),))
        with BlkDriver(daemon.connect(), other, inflight=True) as driver:
            assert driver.read(0, 512) == b"x" * 512
        other.close()


def test_lanes_change_with_the_record(
    lane: Lane, tmp_path: Path, memory: Memory, features: int
) -> None:
    """A record that one lane wrote is read by the other."""
    other = "express" if lane.value == "python" else "python"
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(IMAGE_SIZE))
    stuck = Daemon(Program.VHOSTBLK, tmp_path, STUCK, EXPORT, inherited=False)
    with stuck, BlkDriver(stuck.connect(), memory, features=features, inflight=True) as driver:
        driver.submit(OUT, 0, data_out=[b"y" * 4096])
        driver.kick()
        wait_noted(driver, 1)
        stuck.kill()
        env = {"VHOSTBLK_LANE": other}
        with Daemon(
            Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False, env=env
        ) as daemon:
            driver.reconnect(daemon.connect())
            ((request, _),) = driver.drain()
            assert request.status == Status.OK
    assert image.read_bytes()[:4096] == b"y" * 4096
