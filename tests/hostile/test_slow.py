# SPDX-License-Identifier: Apache-2.0
"""Slow things against a whole daemon, in both lanes; the numbers are those of the list.

While the fault lasts, the bystander is served, on the same iothread, and so are new front-ends.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.layout.virtio_blk import RequestType, Status
from tests.frontend.memory import MIB, Memory
from tests.frontend.ring import Segment
from tests.virtio_blk.support import header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.frontend.ring import DriverRing
    from tests.frontend.scene import Scene

#: The most that an eventfd's counter can be.
FULL = (1 << 64) - 2


def fill(fd: int) -> None:
    """Have a write to an eventfd wait, whoever writes: its flags are those of the open file."""
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)


def read_unheard(driver: BlkDriver) -> None:
    """Read, asking for an interrupt and waiting for none."""
    ring = driver.rings[0]
    ring.arm()
    driver.submit(RequestType.IN, data_in=[512])
    driver.kick()
    wait_until(ring.has_used)
    ((request, data),) = driver.poll()
    assert (request.status, data) == (Status.OK, bytes(512))


def test_1_call_descriptor_that_is_full_and_blocks(scene: Scene) -> None:
    with scene.driver() as driver:
        fill(driver.rings[0].call_fd)
        for _ in range(5):
            read_unheard(driver)
            scene.bystander.served()
        # The other queue is served, and stopping takes its ordinary course.
        driver.flush(queue=1)
        driver.stop()


def test_2_call_descriptor_that_is_full_from_the_beginning(scene: Scene) -> None:
    """Setting it notifies, for the change may have swallowed a notification."""
    fd = os.eventfd(0)
    fill(fd)
    with scene.driver() as driver:
        driver.connection.set_vring_call(0, fd)
        driver.connection.sync()
        read_unheard(driver)
        scene.bystander.served()
    os.close(fd)


def test_3_error_descriptor_that_is_full_and_blocks(scene: Scene) -> None:
    fd = os.eventfd(0)
    fill(fd)
    with scene.driver() as driver:
        driver.connection.set_vring_err(0, fd)
        driver.connection.sync()
        ring = driver.rings[0]
        ring.make_available(ring.size)
        ring.kick(force=True)
        scene.bystander.served()
        driver.flush(queue=1)
    os.close(fd)


def test_4_kicks_that_the_driver_takes_back(scene: Scene) -> None:
    """It sleeps in a read of its kick descriptor, and so may we if the counter is 0 again."""
    with scene.driver() as driver:
        ring = driver.rings[0]
        os.set_blocking(ring.kick_fd, True)
        over = threading.Event()

        def take_back() -> None:
            while not over.is_set():
                os.eventfd_read(ring.kick_fd)

        thief = threading.Thread(target=take_back)
        thief.start()
        for _ in range(200):
            os.eventfd_write(ring.kick_fd, 1)
        scene.bystander.served()
        over.set()
        while thief.is_alive():
            os.eventfd_write(ring.kick_fd, 1)
            thief.join(0.001)
        driver.flush()
        driver.flush(queue=1)


#: A buffer, and how often a request names it.
BUFFER, TIMES = 8 * MIB, 256


@contextmanager
def large_disk(scene: Scene) -> Iterator[BlkDriver]:
    assert scene.large is not None
    # Rings come out of the last region; the buffer is all of the first, and is overwritten.
    memory = Memory(((1 << 32, BUFFER), (0, MIB)))
    with BlkDriver(Connection.connect(scene.large), memory, queue_size=1024) as driver:
        yield driver
    memory.close()


def add_long_read(ring: DriverRing) -> int:
    """Read two gigabytes into one buffer; return where the status goes."""
    memory = ring.memory
    head, status = memory.allocate(16), memory.allocate(1, 1)
    memory.write(head, header(RequestType.IN))
    memory.write(status, b"\xff")
    data = [Segment(1 << 32, BUFFER, True)] * TIMES
    ring.add([Segment(head, 16), *data, Segment(status, 1, True)])
    return status


@pytest.mark.parametrize("requests", [1, 3])
def test_5_reads_of_gigabytes(scene: Scene, requests: int) -> None:
    """None is refused, and others are served all the time."""
    with large_disk(scene) as driver:
        ring = driver.rings[0]
        driver.memory.write((1 << 32) + BUFFER - 5, b"dirty")
        statuses = [add_long_read(ring) for _ in range(requests)]
        before = scene.bystander.requests
        ring.kick(force=True)
        done = 0
        while done < requests:
            done += len(ring.wait())
        assert scene.bystander.requests - before >= 10
        assert {driver.memory.read(status, 1) for status in statuses} == {b"\0"}
        assert driver.memory.read((1 << 32) + BUFFER - 5, 5) == bytes(5)


def test_6_front_end_that_leaves_during_a_read_of_gigabytes(scene: Scene) -> None:
    with large_disk(scene) as driver:
        add_long_read(driver.rings[0])
        driver.rings[0].kick(force=True)
        scene.bystander.served()
    with large_disk(scene) as driver:
        driver.read(0, 4096)
