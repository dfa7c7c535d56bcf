# SPDX-License-Identifier: Apache-2.0
"""A driver with packed rings, and vhostblk's daemon, in both lanes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.frontend.blk import PACKED_FEATURES, BlkDriver
from tests.frontend.launch import Daemon, Program, raw_file
from tests.frontend.layout.virtio_blk import Feature, RequestType, Status
from tests.frontend.memory import MIB, Memory
from tests.virtio_blk.lanes import lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["lane"]

SIZE = 4 * MIB
EXPORT = "id=export,node-name=disk,num-queues=2,writable=on"
IN, OUT = RequestType.IN, RequestType.OUT

pytestmark = pytest.mark.usefixtures("lane")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    with Daemon(Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT) as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("queue_size", "indirect", "event_idx"),
    [(16, False, True), (24, True, False), (128, True, True)],
)
def test_requests_of_all_lengths_at_depth(
    daemon: Daemon, memory: Memory, queue_size: int, indirect: bool, event_idx: bool
) -> None:
    features = PACKED_FEATURES if event_idx else PACKED_FEATURES & ~Feature.RING_EVENT_IDX.mask
    chance = random.Random(queue_size)
    model = bytearray(256 * 512)
    blocks = [chance.randrange(256) for _ in range(400)]

    def write(number: int) -> tuple[int, int, bytes | int]:
        block, data = blocks[number], chance.randbytes(512)
        # If two writes to one block are in flight, either may be the last one.
        if block in blocks[max(0, number - 16) : number]:
            return IN, block * 512, 512
        model[block * 512 : block * 512 + 512] = data
        return OUT, block * 512, data

    with BlkDriver(
        daemon.connect(),
        memory,
        features=features,
        queue_size=queue_size,
        indirect=indirect,
        start=2 * queue_size - 3,
    ) as driver:
        assert driver.has(Feature.RING_PACKED)
        done = driver.run_at_depth(5, 400, write)
        assert {request.status for request, _ in done} == {Status.OK}
        assert driver.read(0, len(model)) == model
        pieces = [model[:100], model[100:512]]
        driver.run(OUT, SIZE - 512, data_out=[bytes(piece) for piece in pieces], queue=0)
        assert driver.read(SIZE - 512, 512) == model[:512]
        assert driver.stop() == [ring.base for ring in driver.rings]


def test_queues_go_on_where_they_were_stopped(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(
        daemon.connect(), memory, features=PACKED_FEATURES, num_queues=2, queue_size=8
    ) as driver:
        for turn in range(12):
            driver.write(512 * turn, bytes([turn + 1]) * 512, queue=turn % 2)
            for index, base in enumerate(driver.stop()):
                assert base == driver.rings[index].base
                driver.rings[index].attach(driver.connection, index, base=base)
        assert driver.read(0, 512 * 12) == b"".join(bytes([n + 1]) * 512 for n in range(12))


def test_a_broken_queue_leaves_the_other_one_alone(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(
        daemon.connect(), memory, features=PACKED_FEATURES, num_queues=2, queue_size=8
    ) as driver:
        driver.rings[0].make_available(8)
        driver.rings[0].kick(force=True)
        driver.write(0, b"x" * 512, queue=1)
        assert driver.read(0, 512, queue=1) == b"x" * 512
        driver.connection.sync()
