# SPDX-License-Identifier: Apache-2.0
"""Hostile front-ends of a whole daemon, in both lanes: they affect only themselves.

The numbers are those of the list in the project's protocol notes. The daemon has two exports, and a
front-end uses the second one all the time. At the end of each test, the daemon holds the same
resources as before. Tests of single messages are those of the session.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import FEATURES, BlkDriver
from tests.frontend.connection import Connection, FrontendError, make_eventfd
from tests.frontend.layout.vhost_user import (
    F_PROTOCOL_FEATURES,
    HEADER,
    MAX_MEM_SLOTS,
    U64,
    VERSION,
    VRING_STATE,
    InflightArea,
    MemoryRegion,
    Request,
)
from tests.frontend.layout.virtio_blk import RequestType, Status
from tests.frontend.memory import MIB, Memory
from tests.frontend.ring import Segment
from tests.frontend.scene import Scene
from tests.virtio_blk.lanes import lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["lane"]

pytestmark = pytest.mark.usefixtures("lane")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    try:
        yield scene
        scene.check()
        scene.close()
    finally:
        scene.daemon.kill()


def region(size: int, *, guest: int = 0, user: int = 0, offset: int = 0, fd: int) -> MemoryRegion:
    return MemoryRegion(guest, size, user, offset, fd)


@contextmanager
def memfd(size: int) -> Iterator[int]:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
    os.truncate(fd, size)
    try:
        yield fd
    finally:
        os.close(fd)


def refused(action: Callable[[], object]) -> None:
    with pytest.raises(FrontendError):
        action()


def test_1_features_renegotiated_while_running(scene: Scene) -> None:
    with scene.driver() as driver:
        driver.connection.set_features(driver.features | 1 << 30)
        refused(lambda: driver.connection.set_features(0))
        driver.read(0, 512)


def test_2_descriptors_with_messages_that_take_none(scene: Scene) -> None:
    with memfd(4096) as fd:
        for request in (Request.GET_FEATURES, Request.SET_OWNER, Request.GET_CONFIG, 999):
            for _ in range(20):
                with scene.connect() as connection:
                    connection.send(request, bytes(8), [fd] * 8)


def test_3_memory_tables_that_make_no_sense(scene: Scene) -> None:
    with scene.connect() as connection, memfd(8192) as fd, memfd(8192) as other:
        connection.negotiate(FEATURES)
        for bad in (
            region(0, fd=fd),
            region(8193, fd=fd),
            region(4096, offset=8192, fd=fd),
            region(1 << 63, fd=fd),
            region(4096, offset=(1 << 64) - 4096, fd=fd),
            region(8192, guest=(1 << 64) - 4096, fd=fd),
            region(8192, user=(1 << 64) - 4096, fd=fd),
        ):
            refused(lambda bad=bad: connection.set_mem_table([bad]))  # type: ignore[misc]
            refused(lambda bad=bad: connection.add_mem_reg(bad))  # type: ignore[misc]
        fine = region(8192, fd=fd)
        connection.add_mem_reg(fine)
        refused(lambda: connection.add_mem_reg(region(4096, guest=4096, user=1 << 20, fd=other)))
        refused(lambda: connection.add_mem_reg(region(4096, guest=1 << 20, user=4096, fd=other)))
        refused(lambda: connection.rem_mem_reg(region(4096, fd=fd)))
        connection.rem_mem_reg(fine)


def test_3_as_many_slots_as_there_are_and_one_more(scene: Scene) -> None:
    with scene.connect() as connection, memfd(4096) as fd:
        connection.negotiate(FEATURES)
        assert connection.get_max_mem_slots() == MAX_MEM_SLOTS
        for number in range(MAX_MEM_SLOTS):
            place = number << 13
            connection.add_mem_reg(region(4096, guest=place, user=place, fd=fd))
        refused(lambda: connection.add_mem_reg(region(4096, guest=1 << 40, user=1 << 40, fd=fd)))


@pytest.mark.parametrize("kicked", [True, False])
def test_3_memory_truncated_after_it_was_mapped(scene: Scene, kicked: bool) -> None:
    """SIGBUS ends that session, and nothing else."""
    memory = Memory(((0, 16 * MIB),))
    fd = memory.describe()[0].fd
    with BlkDriver(scene.connect(), memory, num_queues=2) as driver:
        driver.read(0, 4096)
        for _ in range(20):
            driver.submit(RequestType.IN, data_in=[4096])
        kept = os.dup(fd)
        if kicked:
            driver.rings[0].kick(force=True)
        os.truncate(kept, 0)
        for ring in driver.rings:  # accessing them would kill this process, too
            os.eventfd_write(ring.kick_fd, 1)
        driver.connection.wait_closed()
        os.close(kept)
    memory.close()
    assert "truncated memory" in scene.daemon.output()


def test_3_memory_truncated_under_load(scene: Scene) -> None:
    """A region with data is truncated, and the region with the rings is not."""
    with scene.driver() as driver, memfd(MIB) as fd:
        statuses, head = driver.memory.allocate(64), driver.memory.allocate(16)
        far = 1 << 40
        driver.connection.add_mem_reg(region(MIB, guest=far, user=far, fd=fd))
        os.truncate(fd, 0)
        for number in range(8):
            data = Segment(far + 4096 * number, 4096, True)
            chain = [Segment(head, 16), data, Segment(statuses + number, 1, True)]
            driver.rings[0].add(chain)
        driver.rings[0].kick(force=True)
        driver.connection.wait_closed()


def test_5_inflight_area_truncated_after_it_was_mapped(scene: Scene) -> None:
    with memfd(1 << 16) as fd, scene.driver() as driver:
        driver.connection.set_inflight_fd(InflightArea(1 << 16, 0, 2, 128, fd))
        driver.stop()
        for index, ring in enumerate(driver.rings):
            ring.attach(driver.connection, index)
        driver.read(0, 512)
        os.truncate(fd, 0)
        driver.submit(RequestType.IN, data_in=[512])
        driver.kick()
        driver.connection.wait_closed()


def test_3_regions_removed_and_tables_replaced_during_io(scene: Scene) -> None:
    with scene.driver() as driver, memfd(MIB) as fd:
        extra = region(MIB, guest=1 << 40, user=1 << 40, fd=fd)
        for _ in range(20):
            for _ in range(8):
                driver.submit(RequestType.IN, data_in=[4096])
            driver.kick()
            driver.connection.add_mem_reg(extra)
            driver.connection.rem_mem_reg(extra)
            driver.connection.set_mem_table(driver.memory.describe())
            driver.drain()
        refused(lambda: driver.connection.set_mem_table([]))
        driver.read(0, 512)


@pytest.mark.parametrize(
    "places",
    [
        (0, 4096, 8192 - 6),
        (0, 4096, 1 << 40),
        (8192 - 16, 4096, 2048),
        (0, 8192 - 4, 4096),
        ((1 << 64) - 16, 4096, 2048),
    ],
)
def test_4_rings_that_end_outside_memory(scene: Scene, places: tuple[int, int, int]) -> None:
    with scene.connect() as connection, memfd(8192) as fd:
        connection.negotiate(FEATURES)
        connection.set_mem_table([region(8192, fd=fd)])
        connection.set_vring_num(0, 128)
        desc, avail, used = places
        refused(lambda: start(connection, desc & ~15, avail & ~1, used & ~3))


def start(connection: Connection, desc: int, avail: int, used: int) -> None:
    connection.set_vring_addr(0, desc, avail, used)
    kick = make_eventfd()
    try:
        connection.set_vring_kick(0, kick)
    finally:
        os.close(kick)


@pytest.mark.parametrize("size", [0, 3, 65535, 65536, (1 << 32) - 1])
def test_4_ring_sizes(scene: Scene, size: int) -> None:
    with scene.connect() as connection:
        connection.negotiate(FEATURES)
        refused(lambda: connection.set_vring_num(0, size))


def test_6_configuration_space_overflows(scene: Scene) -> None:
    with scene.connect() as connection:
        connection.negotiate(FEATURES)
        for offset, size in ((0, 0), (256, 1), (1, 256), ((1 << 32) - 1, 2)):
            refused(lambda offset=offset, size=size: connection.get_config(offset, size))  # type: ignore[misc]
        connection.get_config(0, 60)


def test_6_back_channel_that_never_answers(scene: Scene) -> None:
    with scene.driver() as driver:
        with driver.connection.open_channel():
            driver.read(0, 512)


def test_7_kick_and_call_descriptors_that_are_no_eventfds(scene: Scene) -> None:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    with ours, theirs, scene.driver() as driver:
        for fd in (reader, writer, theirs.fileno()):
            refused(lambda fd=fd: driver.connection.set_vring_call(0, fd))  # type: ignore[misc]
            refused(lambda fd=fd: driver.connection.set_vring_err(0, fd))  # type: ignore[misc]
        driver.read(0, 512)
    os.close(reader)
    os.close(writer)


def test_7_call_descriptor_that_is_full(scene: Scene) -> None:
    full = os.eventfd(0, os.EFD_CLOEXEC)  # and blocks
    os.eventfd_write(full, (1 << 64) - 2)
    with scene.driver() as driver:
        driver.connection.set_vring_call(0, full)
        request = driver.submit(RequestType.FLUSH)
        driver.rings[0].kick(force=True)
        wait_until(lambda: bool(driver.poll()))
        assert request.status == Status.OK
    os.close(full)


def test_8_storms_of_connections_that_say_nothing_or_half_a_word(scene: Scene) -> None:
    for number in range(200):
        with scene.connect() as connection:
            connection.send_raw(HEADER.pack(Request.SET_OWNER, VERSION, 0)[: number % 12])


def test_8_a_second_front_end_waits_for_its_turn(scene: Scene) -> None:
    with scene.driver() as driver, scene.connect() as second:
        second.send(Request.GET_FEATURES)
        driver.read(0, 512)
        driver.connection.close()
        assert second.receive_reply(Request.GET_FEATURES)


def test_9_stopped_and_started_under_load(scene: Scene) -> None:
    with scene.driver() as driver:
        for _ in range(20):
            for _ in range(8):
                driver.submit(RequestType.IN, data_in=[4096])
            driver.kick()
            base = driver.connection.get_vring_base(0)
            driver.rings[0].attach(driver.connection, 0, base=base)
            driver.drain()


def test_9_enabled_and_disabled_under_load(scene: Scene) -> None:
    with scene.driver() as driver:
        for _ in range(20):
            for _ in range(8):
                driver.submit(RequestType.IN, data_in=[4096])
            driver.connection.set_vring_enable(0, False)
            driver.kick()
            driver.connection.set_vring_enable(0, True)
            driver.drain()


def test_9_reset_under_load(scene: Scene) -> None:
    """Requests in flight complete, and the device starts again."""
    with scene.driver(inflight=True) as driver:
        for number in range(10):
            requests = [driver.submit(RequestType.IN, data_in=[4096]) for _ in range(8)]
            driver.kick()
            if number % 2:
                driver.connection.reset_device()
            else:
                driver.connection.set_status(0)
            done = driver.poll()
            assert {request.status for request, _ in done} <= {Status.OK}
            assert all(request.status in (Status.OK, 0xFF) for request in requests)
            driver.connection.set_features(driver.features | F_PROTOCOL_FEATURES)
            driver.rings[0].attach(driver.connection, 0, base=int(driver.rings[0].used_idx[0]))
            driver.rings[1].attach(driver.connection, 1)
            driver.drain()


def test_9_status_of_a_device_whose_ring_broke(scene: Scene) -> None:
    with scene.driver() as driver:
        driver.connection.set_status(0xF)
        driver.rings[0].make_available(999)
        driver.rings[0].kick(force=True)
        wait_until(lambda: driver.connection.get_status() == 0x4F)
        driver.connection.set_status(0)
        assert driver.connection.get_status() == 0


def test_9_gone_under_load(scene: Scene) -> None:
    for _ in range(10):
        with scene.driver() as driver:
            for _ in range(30):
                driver.submit(RequestType.IN, data_in=[4096])
            driver.kick()


def test_12_kicks_before_enabling_and_after_stopping(scene: Scene) -> None:
    with scene.driver() as driver:
        driver.connection.set_vring_enable(0, False)
        late = driver.submit(RequestType.FLUSH)
        driver.rings[0].kick(force=True)
        driver.connection.sync()
        assert driver.poll() == []
        driver.connection.set_vring_enable(0, True)
        assert driver.drain()[0][0] is late
        driver.stop()
        driver.submit(RequestType.FLUSH)
        driver.rings[0].kick(force=True)
        driver.connection.sync()
        assert driver.poll() == []
        with pytest.raises(FrontendError):
            driver.connection.query(Request.GET_VRING_BASE, VRING_STATE.pack(7, 0))


def test_1_acknowledged_features_that_nobody_offered(scene: Scene) -> None:
    with scene.connect() as connection:
        connection.send(Request.SET_FEATURES, U64.pack(1 << 63))
        connection.wait_closed()
