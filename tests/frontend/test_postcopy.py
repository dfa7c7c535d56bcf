# SPDX-License-Identifier: Apache-2.0
"""Post-copy: the guest's requests wait until the front-end says that its memory has arrived."""

from __future__ import annotations

import os
import select
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.frontend.blk import BlkDriver
from tests.frontend.connection import ConnectionClosedError
from tests.frontend.launch import Daemon, Program, raw_file
from tests.frontend.layout.vhost_user import MemoryRegion
from tests.frontend.layout.virtio_blk import RequestType, Status
from tests.virtio_blk.lanes import lane
from vhostblk.vhost_user import postcopy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.frontend.memory import Memory

__all__ = ["lane"]

EXPORT = "id=export,node-name=disk,num-queues=2,writable=on"
BLOCK = bytes(range(256)) * 16

pytestmark = [
    pytest.mark.usefixtures("lane"),
    pytest.mark.skipif(not postcopy.available(), reason="no userfaultfd here"),
]


@pytest.fixture
def daemon(tmp_path: Path, image: Path) -> Iterator[Daemon]:
    with Daemon(Program.VHOSTBLK, tmp_path, raw_file(image), EXPORT, inherited=False) as daemon:
        yield daemon


@pytest.fixture
def driver(daemon: Daemon, memory: Memory) -> Iterator[BlkDriver]:
    """A driver with stopped queues, and a request in each."""
    with BlkDriver(daemon.connect(), memory, num_queues=2, start=0xFFFE) as driver:
        driver.write(0, BLOCK)
        driver.stop()
        driver.submit(RequestType.IN, 0, data_in=[4096])
        driver.submit(RequestType.OUT, 4096, data_out=[BLOCK], queue=1)
        for queue in (0, 1):
            driver.kick(queue)
        yield driver


@contextmanager
def arriving(daemon: Daemon, driver: BlkDriver) -> Iterator[int]:
    """Start the guest at the destination; return the userfaultfd."""
    driver.connection.close()
    driver.connection = connection = daemon.connect()
    connection.negotiate(driver.features)
    faults = connection.postcopy_advise()
    connection.postcopy_listen()
    connection.add_arriving_regions(driver.memory.describe())
    for index, ring in enumerate(driver.rings):
        ring.attach(connection, index)
    connection.sync()
    yield faults
    os.close(faults)


def test_requests_wait_until_memory_has_come(daemon: Daemon, driver: BlkDriver) -> None:
    content = driver.memory.take_away()
    with arriving(daemon, driver) as faults:
        assert driver.memory.untouched
        assert select.select([faults], [], [], 0) == ([], [], [])
        driver.memory.bring_back(content)
        driver.connection.postcopy_end()
        done = driver.drain(0) + driver.drain(1)
        assert [(request.status, data) for request, data in done] == [
            (Status.OK, BLOCK),
            (Status.OK, b""),
        ]
        assert driver.read(4096, 4096) == BLOCK


def test_guest_that_ends_before_that_leaves_nothing(daemon: Daemon, driver: BlkDriver) -> None:
    driver.memory.take_away()
    with arriving(daemon, driver):
        assert driver.connection.get_vring_base(0) == driver.rings[0].base
        driver.connection.reset_device()
        driver.connection.postcopy_end()
        assert driver.memory.untouched
    with arriving(daemon, driver):
        driver.connection.close()
    with daemon.connect() as other:
        other.sync()
        assert driver.memory.untouched


def test_memory_that_can_not_be_registered_ends_the_session(daemon: Daemon, image: Path) -> None:
    with daemon.connect() as connection, image.open("r+b") as file:
        os.close(connection.postcopy_advise())
        connection.postcopy_listen()
        region = MemoryRegion(0, 4096, 0, 0, file.fileno())
        with pytest.raises(ConnectionClosedError):
            connection.add_arriving_regions([region])
    assert "Invalid argument" in daemon.output()
