# SPDX-License-Identifier: Apache-2.0
"""The front-end works with QEMU's storage daemon, and vhostblk passes the same tests."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.frontend.blk import FEATURES, BlkDriver, RequestError
from tests.frontend.connection import ConnectionClosedError, RequestFailedError
from tests.frontend.launch import Daemon, Program, raw_file
from tests.frontend.layout.vhost_user import VRING_STATE, Request
from tests.frontend.layout.virtio_blk import Feature, RequestType, Status
from tests.frontend.memory import MIB, Memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 8 * MIB


def _ours_is_there() -> bool:
    from importlib.util import find_spec

    return find_spec("vhostblk.__main__") is not None


PROGRAMS = [
    pytest.param(
        Program.QEMU,
        marks=pytest.mark.skipif(not Program.QEMU.available, reason="qemu-storage-daemon missing"),
    ),
    pytest.param(
        Program.VHOSTBLK, marks=pytest.mark.skipif(not _ours_is_there(), reason="not built yet")
    ),
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def start(
    program: Program,
    image: Path,
    *,
    num_queues: int = 1,
    inherited: bool = True,
    writable: bool = True,
) -> Daemon:
    on_off = "on" if writable else "off"
    return Daemon(
        program,
        image.parent,
        raw_file(image, writable=writable),
        f"id=export,node-name=disk,num-queues={num_queues},writable={on_off}",
        inherited=inherited,
    )


@pytest.fixture(params=PROGRAMS)
def daemon(request: pytest.FixtureRequest, image: Path) -> Iterator[Daemon]:
    with start(request.param, image, num_queues=4) as daemon:
        yield daemon


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("inherited", [True, False])
def test_reaches_a_daemon_by_path_and_by_inherited_socket(
    program: Program, image: Path, memory: Memory, inherited: bool
) -> None:
    with start(program, image, inherited=inherited) as daemon:
        with BlkDriver(daemon.connect(), memory) as driver:
            assert driver.capacity == SIZE


@pytest.mark.parametrize(
    ("indirect", "event_idx", "num_queues"),
    [(False, False, 1), (False, True, 4), (True, False, 4), (True, True, 1)],
)
def test_random_requests_leave_the_disk_as_a_model_says(
    daemon: Daemon, image: Path, memory: Memory, indirect: bool, event_idx: bool, num_queues: int
) -> None:
    features = FEATURES if event_idx else FEATURES & ~(1 << Feature.RING_EVENT_IDX)
    rng = random.Random(1)
    model = bytearray(SIZE)
    with BlkDriver(
        daemon.connect(),
        memory,
        num_queues=num_queues,
        features=features,
        indirect=indirect,
        start=0xFFF0,
    ) as driver:
        assert driver.has(Feature.RING_EVENT_IDX) == event_idx
        for number in range(60):
            queue = number % num_queues
            length = 512 * rng.randrange(1, 64)
            offset = 512 * rng.randrange((SIZE - length) // 512)
            what = rng.choice(["read", "write", "zero", "discard", "flush"])
            if what == "read":
                assert driver.read(offset, length, queue=queue) == model[offset : offset + length]
            elif what == "write":
                data = rng.randbytes(length)
                driver.write(offset, data, queue=queue)
                model[offset : offset + length] = data
            elif what == "zero":
                driver.write_zeroes((offset, length), unmap=rng.random() < 0.5, queue=queue)
                model[offset : offset + length] = bytes(length)
            elif what == "discard":
                driver.discard((offset // 4096 * 4096, 4096), queue=queue)
                start = offset // 4096 * 4096
                model[start : start + 4096] = bytes(4096)
            else:
                driver.flush(queue=queue)
        assert driver.read(0, MIB) == model[:MIB]
    assert daemon.stop() == 0
    assert image.read_bytes() == model


def test_many_requests_in_flight_complete_each_with_its_own_data(
    daemon: Daemon, memory: Memory
) -> None:
    blocks = {number: number.to_bytes(2, "little") * 2048 for number in range(256)}
    with BlkDriver(daemon.connect(), memory, start=0xFF00) as driver:
        written = driver.run_at_depth(32, 256, lambda n: (RequestType.OUT, n * 4096, blocks[n]))
        assert {request.status for request, _ in written} == {Status.OK}
        read = driver.run_at_depth(32, 256, lambda n: (RequestType.IN, n * 4096, 4096))
        assert sorted(data for _, data in read) == sorted(blocks.values())
        assert all(request.used_length == 4097 for request, _ in read)


def test_scattered_buffers(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        pieces = [b"a" * 512, b"b" * 1024, b"c" * 512]
        driver.run(RequestType.OUT, 4096, data_out=pieces)
        assert driver.run(RequestType.IN, 4096, data_in=[1536, 512]) == b"".join(pieces)


def test_get_id_and_configuration(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        assert driver.get_id()
        assert driver.connection.get_queue_num() == 4
        assert driver.connection.get_max_mem_slots() >= 32
        config = driver.config()
        assert int(config["num_queues"]) == 4
        assert int(config["blk_size"]) == 512
        assert int(config["max_discard_seg"]) >= 1


def test_unknown_request_type_is_unsupported(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        with pytest.raises(RequestError) as caught:
            driver.run(99, data_in=[512])
        assert caught.value.status == Status.UNSUPP


@pytest.mark.parametrize("program", PROGRAMS)
def test_write_to_a_read_only_export_fails(program: Program, image: Path, memory: Memory) -> None:
    with start(program, image, writable=False) as daemon:
        with BlkDriver(daemon.connect(), memory) as driver:
            assert driver.has(Feature.RO)
            with pytest.raises(RequestError):
                driver.write(0, bytes(512))


def test_memory_region_added_and_removed_while_running(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        region = memory.add_region(1 << 36, MIB)
        driver.connection.add_mem_reg(region)
        driver.write(0, b"x" * 4096)
        assert driver.read(0, 4096) == b"x" * 4096
        assert any(
            address >= 1 << 36 for pool in driver._buffers._free.values() for address in pool
        )
        driver.connection.rem_mem_reg(region, with_fd=True)


def test_memory_table_replaced_while_running(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        driver.write(0, b"y" * 512)
        driver.connection.set_mem_table(memory.describe())
        assert driver.read(0, 512) == b"y" * 512


def test_stop_and_restart_of_the_queues(daemon: Daemon, memory: Memory) -> None:
    with BlkDriver(daemon.connect(), memory) as driver:
        driver.write(512, b"z" * 512)
        assert driver.stop() == [driver.rings[0].last_used]
        driver.rings[0].attach(driver.connection, 0)
        assert driver.read(512, 512) == b"z" * 512


def test_the_next_front_end_is_served_when_the_first_has_left(
    daemon: Daemon, memory: Memory
) -> None:
    for number in range(5):
        other = Memory(((0, 8 * MIB),))
        with BlkDriver(daemon.connect(), other) as driver:
            driver.write(512 * number, bytes([number + 1]) * 512)
        other.close()
    with BlkDriver(daemon.connect(), memory) as driver:
        assert driver.read(0, 2560) == b"".join(bytes([n + 1]) * 512 for n in range(5))


def test_our_daemon_reports_an_invalid_vring(image: Path) -> None:
    if not _ours_is_there():
        pytest.skip("not built yet")
    with start(Program.VHOSTBLK, image) as daemon:
        with daemon.connect() as connection:
            connection.negotiate(FEATURES)
            with pytest.raises(RequestFailedError):
                connection.set_vring_enable(200, True)
            assert connection.get_queue_num() == 1
            connection.send(Request.SET_VRING_ENABLE, VRING_STATE.pack(200, 1))
            with pytest.raises(ConnectionClosedError):
                connection.sync()
        assert "SET_VRING_ENABLE: vring 200 of 1" in daemon.output()
