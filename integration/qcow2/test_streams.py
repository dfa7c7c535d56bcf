# SPDX-License-Identifier: Apache-2.0
"""Streams with gaps, and several at once: clusters given in advance are not allocated twice."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.record import RecordingNode, never, opened_on
from integration.qcow2.test_bursts import burst
from integration.qcow2.tools import check, content, opened, qemu_img, read, run
from tests.frontend.blk import BlkDriver
from tests.frontend.launch import Daemon, Program
from tests.frontend.memory import Memory
from vhostblk.block.drivers.qcow2.ahead import MIN_STREAM
from vhostblk.block.graph.node import BlockStatus
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode

CLUSTER = 64 << 10
LONG = MIN_STREAM // CLUSTER
SIZE = 32 << 20

#: Guest clusters that one burst writes, after a stream of `LONG` clusters from 0 on.
BURSTS: dict[str, list[int]] = {
    "a gap of one": [LONG, *range(LONG + 2, LONG + 20)],
    "gaps everywhere": [LONG, *range(LONG + 1, LONG + 61, 2)],
    "random gaps": sorted({LONG, *random.Random("gaps").sample(range(LONG, LONG + 40), 20)}),
    "backwards": list(range(LONG + 24, LONG - 1, -3)),
    "two streams that meet": [LONG, *range(LONG + 8, 3 * LONG)],
    "two streams far apart": [*range(LONG, LONG + 8), *range(4 * LONG, 5 * LONG + 8)],
    "up to the disk's end": [LONG, SIZE // CLUSTER - 1],
}


def _filled(cluster: int, length: int = CLUSTER) -> bytes:
    return bytes([cluster % 255 + 1]) * length


@pytest.mark.parametrize(
    ("name", "length"), [*((name, CLUSTER) for name in BURSTS), ("random gaps", 4096)]
)
def test_every_cluster_of_a_burst_with_gaps_keeps_its_data(
    tmp_path: Path, name: str, length: int
) -> None:
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)

    async def main() -> None:
        async with opened(path) as (_, backend):
            assert not any(await burst(backend, model, [(0, b"first")]))  # looks for free clusters
            for start in range(0, LONG, 32):
                some = range(start, min(start + 32, LONG))
                pieces = [(each * CLUSTER, _filled(each)) for each in some]
                assert not any(await burst(backend, model, pieces))
            pieces = [(each * CLUSTER, _filled(each, length)) for each in BURSTS[name]]
            assert not any(await burst(backend, model, pieces))
            assert await read(backend, 0, SIZE) == model
            # Later writes into the gaps do no harm, either.
            pieces = [(each * CLUSTER, _filled(each + 1)) for each in range(LONG, 2 * LONG)]
            assert not any(await burst(backend, model, pieces))
            assert await read(backend, 0, SIZE) == model

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == model


def test_nothing_is_given_behind_a_write_that_fails(tmp_path: Path) -> None:
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    file = RecordingNode(path.read_bytes())

    async def allocated(node: BlockNode, cluster: int) -> bool:
        return bool((await node.block_status(cluster * CLUSTER, 1)).status & BlockStatus.ALLOCATED)

    async def main() -> None:
        async with opened_on(file) as (node, backend):
            assert not any(await burst(backend, model, [(0, b"first")]))  # looks for free clusters
            file.fails = lambda _, data: errno.ENOSPC if b"bad!" in data else 0
            pieces = [(each * CLUSTER, _filled(each)) for each in range(LONG + 8)]
            pieces[-1] = (pieces[-1][0], b"bad!" * (CLUSTER // 4))
            assert [bool(each) for each in await burst(backend, model, pieces)].count(True) == 1
            assert not await allocated(node, LONG + 7)
            assert not await allocated(node, LONG + 8)
            file.fails = never
            assert not any(await burst(backend, model, [(pieces[-1][0], _filled(LONG + 7))]))
            pieces = [(each * CLUSTER, _filled(each)) for each in range(LONG + 8, 2 * LONG + 8)]
            assert not any(await burst(backend, model, pieces))
            assert await allocated(node, 2 * LONG + 8)  # a new stream
            assert await read(backend, 0, SIZE) == model

    run(main())
    path.write_bytes(file.data)
    check(path)


def _sparse(rng: random.Random) -> list[int]:
    """Return the clusters of a sparse copy: streams, each followed by clusters with gaps."""
    chosen: list[int] = []
    for start in range(0, SIZE // CLUSTER, 4 * LONG):
        dense, end = start + LONG + rng.randrange(8, 24), start + 4 * LONG
        chosen += range(start, dense)
        chosen += [each for each in range(dense + 1, end) if rng.random() < 0.7]
    return chosen


def _copy(driver: BlkDriver, clusters: Sequence[int], length: int) -> None:
    """Write clusters, as many at once as a copy at queue depth 32 does."""
    for start in range(0, len(clusters), 32):
        for each in clusters[start : start + 32]:
            data = _filled(each, length)
            driver.submit(RequestType.OUT, each * CLUSTER, data_out=[data])
        driver.kick()
        for request, _ in driver.drain():
            assert request.status == 0


@pytest.mark.parametrize("length", [CLUSTER, 4096])
def test_a_sparse_copy_through_the_socket_is_complete(
    tmp_path: Path, directory: Path, length: int
) -> None:
    path, model = tmp_path / "disk.qcow2", bytearray(SIZE)
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    clusters = _sparse(random.Random(length))
    blockdevs = [
        f"driver=file,node-name=file,filename={path}",
        "driver=qcow2,node-name=disk,file=file",
    ]
    memory = Memory()
    extra = ["--object", "iothread,id=io0"]
    with Daemon(
        Program.VHOSTBLK,
        directory,
        blockdevs,
        "id=export,node-name=disk,writable=on,iothread=io0",
        extra=extra,
    ) as daemon:
        with BlkDriver(daemon.connect(), memory) as driver:
            _copy(driver, clusters, length)
            for each in clusters:
                model[each * CLUSTER : each * CLUSTER + length] = _filled(each, length)
            found = b"".join(driver.read(at, 1 << 20) for at in range(0, SIZE, 1 << 20))
            assert found == model
            driver.stop()
        assert daemon.stop() == 0
        assert not daemon.output()
    memory.close()
    check(path)
    assert content(path, tmp_path / "raw") == model
