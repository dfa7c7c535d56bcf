# SPDX-License-Identifier: Apache-2.0
"""Hostile front-ends, what `tests.frontend.test_hostile_frontend` doesn't have of the list."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import FEATURES, BlkDriver
from tests.frontend.connection import FrontendError, make_eventfd
from tests.frontend.layout.vhost_user import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FLAG_REPLY,
    HEADER,
    LOG,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_STATE,
    InflightArea,
    MemoryRegion,
    Request,
)
from tests.frontend.memory import Memory
from tests.frontend.scene import Scene
from vhostblk.vhost_user.layout import MAX_PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.frontend.connection import Connection

#: The list speaks of 100,000, which take half a minute.
MESSAGES = int(os.environ.get("VHOSTBLK_TEST_MESSAGES", "10000"))

#: The file with the number of huge pages that may be allocated on demand.
OVERCOMMIT = Path("/proc/sys/vm/nr_overcommit_hugepages")

#: A front-end's words up to a started vring, without what needs descriptors.
_HANDSHAKE = b"".join(
    HEADER.pack(request, VERSION, len(payload)) + payload
    for request, payload in (
        (Request.GET_FEATURES, b""),
        (Request.SET_OWNER, b""),
        (Request.SET_FEATURES, U64.pack(1 << 32)),
        (Request.SET_VRING_NUM, VRING_STATE.pack(0, 128)),
        (Request.SET_VRING_BASE, VRING_STATE.pack(0, 0)),
        (Request.SET_VRING_ADDR, VRING_ADDR.pack(0, 0, 0, 4096, 8192, 0)),
    )
)


@contextlib.contextmanager
def memfd(size: int) -> Iterator[int]:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
    os.truncate(fd, size)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "words",
    [
        HEADER.pack(Request.SET_FEATURES, VERSION, MAX_PAYLOAD + 1),
        HEADER.pack(Request.SET_FEATURES, VERSION, 0xFFFF_FFFF),
        HEADER.pack(Request.SET_OWNER, 0, 0),
        HEADER.pack(Request.SET_OWNER, 3, 0),
        HEADER.pack(Request.SET_OWNER, VERSION | FLAG_REPLY, 0),
        HEADER.pack(Request.SET_FEATURES, VERSION, 4) + bytes(4),
        HEADER.pack(Request.SET_VRING_KICK, VERSION, 8) + U64.pack(0x100),
        HEADER.pack(9999, VERSION, 0),
    ],
)
def test_1_messages_that_make_no_sense_end_the_connection(scene: Scene, words: bytes) -> None:
    with scene.connect() as connection:
        connection.send_raw(words)
        connection.wait_closed()


def test_1_messages_twice_and_in_any_order(scene: Scene) -> None:
    memory = Memory()
    with scene.connect() as connection:
        connection.set_features(FEATURES & connection.get_features() | 1 << 30)
        connection.set_vring_enable(0, True)
        connection.set_vring_num(0, 8)
        connection.negotiate(FEATURES)
        for _ in range(3):
            connection.set_mem_table(memory.describe())
            connection.set_owner()
            connection.reset_owner()
        assert connection.get_vring_base(0) == connection.get_vring_base(0)
        driver = BlkDriver(connection, memory, num_queues=2)
        driver.read(0, 512)
        for ring in driver.rings:
            ring.close()
    memory.close()


def test_2_no_descriptor_is_leaked_by_thousands_of_messages(scene: Scene) -> None:
    """Some have descriptors, which replace one another, most have none."""
    call = make_eventfd()
    with scene.driver() as driver:
        connection = driver.connection
        for _ in range(MESSAGES // 20):
            for request in (Request.SET_VRING_CALL, Request.SET_VRING_ERR):
                connection.send(request, U64.pack(0), [call])
        many = HEADER.pack(Request.SET_OWNER, VERSION, 0) * 1000
        for _ in range(MESSAGES * 9 // 10 // 1000):
            connection.send_raw(many)
        connection.sync()
        # Not more than there are for one of each.
        assert scene.holds()[0] < scene.before[0] + 32
    os.close(call)


def test_3_memory_truncated_where_there_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings and data go while requests are there; the session ends, the daemon doesn't."""
    monkeypatch.setenv("VHOSTBLK_ENGINE", "off")
    monkeypatch.setenv("VHOSTBLK_LANE", "python")
    scene = Scene(tmp_path)
    try:
        for _ in range(3):
            memory = Memory(((0, 1 << 24),))
            fd = os.dup(memory.describe()[0].fd)
            with BlkDriver(scene.connect(), memory, num_queues=2) as driver:
                for _ in range(20):
                    driver.submit(0, data_in=[4096])
                driver.rings[0].publish()
                os.truncate(fd, 0)
                for ring in driver.rings:  # to touch them here would kill us, too
                    os.eventfd_write(ring.kick_fd, 1)
                driver.connection.wait_closed()
            os.close(fd)
            memory.close()
            scene.check()
        assert "truncated memory" in scene.daemon.output()
        scene.close()
    finally:
        scene.daemon.kill()


@pytest.fixture
def _huge_pages() -> Iterator[None]:
    """Let the kernel allocate huge pages on demand, if we have the permission."""
    try:
        file = OVERCOMMIT.open("r+")
    except OSError:  # some may be reserved already
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # other test processes do the same
        before = file.read()
        OVERCOMMIT.write_text("4")
        try:
            yield
        finally:
            OVERCOMMIT.write_text(before)


@pytest.mark.usefixtures("_huge_pages")
def test_3_memory_of_huge_pages(scene: Scene) -> None:
    size = 2 << 20
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        os.truncate(fd, size)
        try:
            mmap.mmap(fd, size).close()
        except OSError:
            pytest.skip("no huge pages to be had")
        connection = stack.enter_context(scene.connect())
        connection.negotiate(FEATURES)
        # Half a page is mapped, and unmapped, as the whole one.
        for length in (size, size // 2):
            region = MemoryRegion(0, length, 0, 0, fd)
            connection.add_mem_reg(region)
            connection.rem_mem_reg(region)


@pytest.mark.parametrize(
    "places", [(8, 4096, 8192), (0, 4097, 8192), (0, 4096, 8194), (16, 4098, 8190)]
)
def test_4_misaligned_rings(scene: Scene, places: tuple[int, int, int]) -> None:
    with scene.connect() as connection:
        connection.negotiate(FEATURES)
        connection.set_vring_num(0, 128)
        with pytest.raises(FrontendError):
            connection.set_vring_addr(0, *places)


def record(connection: Connection, size: int, queues: int, entries: int, fd: int) -> None:
    connection.set_inflight_fd(InflightArea(size, 0, queues, entries, fd))


def test_5_records_that_are_too_small_corrupt_or_of_another_version(scene: Scene) -> None:
    with memfd(1 << 16) as fd, scene.driver() as driver:
        for size, queues, entries in ((64, 2, 128), (1 << 17, 2, 128), (0, 1, 1)):
            with pytest.raises(FrontendError):
                record(driver.connection, size, queues, entries, fd)
        driver.read(0, 512)
        for content in (
            b"\0" * 8 + b"\7\0",  # version 7
            b"\1" + b"\0" * 7 + b"\1\0",  # features
            b"\0" * 8 + b"\1\0" + b"\3\0",  # three entries
            b"\0" * 8 + b"\1\0" + b"\x80\0" + b"\xff\xff" + b"\x05\0",  # list out of the queue
        ):
            os.pwrite(fd, content.ljust(64, b"\0"), 0)
            record(driver.connection, 1 << 16, 2, 128, fd)
            driver.connection.get_vring_base(0)
            used = int(driver.rings[0].used_idx[0])
            if content[12:14] == b"\xff\xff":
                os.pwrite(fd, ((used - 1) & 0xFFFF).to_bytes(2, "little"), 14)
            with pytest.raises(FrontendError):
                driver.rings[0].attach(driver.connection, 0)
        driver.read(0, 512, queue=1)


@pytest.mark.parametrize("size", [0, 8, (1 << 64) - 1])
def test_5_a_dirty_log_that_is_too_small(scene: Scene, size: int) -> None:
    """Or that the file doesn't have; migration can't go on, so the session ends."""
    with scene.driver() as driver, memfd(4096) as fd:
        driver.connection.set_features(driver.features | F_PROTOCOL_FEATURES | F_LOG_ALL)
        driver.connection.send(Request.SET_LOG_BASE, LOG.pack(size, 0), [fd])
        driver.connection.wait_closed()


def test_7_event_descriptors_of_kinds_that_could_block_or_grow(
    scene: Scene, tmp_path: object
) -> None:
    paths = ("/dev/zero", "/", "/proc/self/mem")
    with scene.driver() as driver, memfd(4096) as file:
        fds = [os.open(path, os.O_RDONLY) for path in paths]
        for fd in (*fds, file):
            with pytest.raises(FrontendError):
                driver.connection.set_vring_call(0, fd)
        driver.read(0, 512)
        for fd in fds:
            os.close(fd)


def fill(fd: int) -> None:
    """Set an eventfd's counter to the highest value, without waiting."""
    with contextlib.suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    os.eventfd_write(fd, (1 << 64) - 2)


def test_7_event_descriptors_that_are_made_to_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_NONBLOCK is shared with the front-end, which fills what the daemon writes to.

    This is about the event loop, so it is for the Python lane.
    """
    monkeypatch.setenv("VHOSTBLK_LANE", "python")
    scene = Scene(tmp_path)
    try:
        with scene.driver() as driver:
            ring, broken = driver.rings
            err = make_eventfd()
            for index in range(2):
                driver.connection.set_vring_err(index, err)
            for fd in (ring.call_fd, broken.call_fd, err):
                os.set_blocking(fd, True)
                fill(fd)
            driver.submit(0, data_in=[4096])
            driver.kick()
            wait_until(ring.has_used)
            broken.make_available(777)
            broken.kick(force=True)
            wait_until(lambda: "queue 1 is broken" in scene.daemon.output())
            scene.bystander.served()
            os.close(err)
        scene.check()
        scene.close()
    finally:
        scene.daemon.kill()


def test_8_disconnecting_at_every_byte(scene: Scene) -> None:
    for cut in range(1, len(_HANDSHAKE)):
        with scene.connect() as connection:
            connection.send_raw(_HANDSHAKE[:cut])


def test_10_a_device_that_is_gone_is_gone_on_with(scene: Scene) -> None:
    """The socket's side of it: a front-end that finds itself alone connects again.

    What a killed daemon leaves in flight is shown in `tests.frontend.test_recovery`, at every
    store in `tests.virtqueue.test_inflight`, and with guests in `integration.test_crash`.
    """
    memory = Memory()
    with BlkDriver(scene.connect(), memory, num_queues=2, inflight=True) as driver:
        for _ in range(5):
            for _ in range(8):
                driver.submit(0, data_in=[4096])
            driver.kick()
            driver.connection.close()
            scene.wait_free()
            driver.reconnect(scene.connect())
            assert all(request.status == 0 for request, _ in driver.drain())
    memory.close()
    wait_until(lambda: scene.holds() <= scene.before)
