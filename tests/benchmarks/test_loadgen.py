# SPDX-License-Identifier: Apache-2.0
"""The load generator against the QEMU storage daemon."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import Disk
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import MISMATCHES, Ledger, RunError, Workload, run
from tests.descriptors import open_fds

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Serve

SIZE = 4 << 20
NULL = Disk("null-co", (f"size={SIZE}",), queues=2)
SHORT = 0.1


def image(tmp_path: Path) -> tuple[Path, Disk]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path, Disk("file", (f"filename={path}",), queues=2)


def fill_all(front_end: FrontEnd, ledger: Ledger) -> None:
    workload = Workload(write_share=1.0, sequential=True, seconds=20, limit=ledger.blocks)
    assert run(front_end, workload, ledger).writes >= ledger.blocks


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("wait_for_calls", [True, False])
def test_every_request_is_answered(
    serve: Serve, event_idx: bool, indirect: bool, wait_for_calls: bool
) -> None:
    geometry = Geometry(queues=2, depth=8, segments=2, event_idx=event_idx, indirect=indirect)
    workload = Workload(
        seconds=5, limit=500, write_share=0.5, threads=2, wait_for_calls=wait_for_calls
    )
    with FrontEnd(serve(NULL).sockets[0], geometry) as front_end:
        result = run(front_end, workload)
        assert result.requests == 1000
        assert result.latency.count == 1000
        assert result.odd_lengths == 0
        assert front_end.stop() == [500, 500]


@pytest.mark.parametrize("indirect", [True, False])
def test_descriptors_can_be_written_for_each_request(serve: Serve, indirect: bool) -> None:
    geometry = Geometry(depth=4, indirect=indirect, rewrite=True)
    with FrontEnd(serve(NULL).sockets[0], geometry) as front_end:
        run(front_end, Workload(seconds=5, limit=20))
        (queue,) = front_end.queues
        table = bytes(16 * geometry.ring_size)
        front_end.loadgen.ffi.memmove(queue.memory + queue.desc, table, len(table))
        assert run(front_end, Workload(seconds=5, limit=20)).requests == 20


def test_rings_wrap_many_times(serve: Serve) -> None:
    geometry = Geometry(depth=32, queue_size=128)
    with FrontEnd(serve(NULL).sockets[0], geometry) as front_end:
        for _ in range(2):
            assert run(front_end, Workload(seconds=10, limit=40000)).reads == 40000
        assert front_end.stop() == [80000 & 0xFFFF]


def test_fixed_rate_is_kept(serve: Serve) -> None:
    with FrontEnd(serve(NULL).sockets[0], Geometry(depth=8)) as front_end:
        result = run(front_end, Workload(seconds=10, rate=2000, limit=400))
        assert result.reads == 400
        assert result.seconds >= 399 / 2000


def test_a_run_ends_with_its_time(serve: Serve) -> None:
    with FrontEnd(serve(NULL).sockets[0], Geometry(depth=4)) as front_end:
        result = run(front_end, Workload(seconds=SHORT))
        assert result.requests > 0
        assert result.seconds >= SHORT


def test_mixed_verified_load_passes(serve: Serve, tmp_path: Path) -> None:
    _, disk = image(tmp_path)
    daemon = serve(disk)
    ledger = Ledger(SIZE // 4096, seed=3)
    with FrontEnd(daemon.sockets[0], Geometry(depth=32)) as front_end:
        fill_all(front_end, ledger)
    mixed = Workload(seconds=0.2, write_share=0.5, zeroes_share=0.05, flush_share=0.02)
    with FrontEnd(daemon.sockets[0], Geometry(queues=2, depth=8)) as front_end:
        result = run(front_end, mixed, ledger)
        assert result.reads
        assert result.writes
        assert result.flushes
        assert result.zeroes
        reading = Workload(seconds=20, sequential=True, limit=ledger.blocks // 2)
        assert run(front_end, reading, ledger).reads == ledger.blocks


def test_a_corrupted_block_is_found(serve: Serve, tmp_path: Path) -> None:
    path, disk = image(tmp_path)
    ledger = Ledger(SIZE // 4096, seed=3)
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=8)) as front_end:
        fill_all(front_end, ledger)
        with path.open("r+b") as file:
            file.seek(100 * 4096 + 1000)
            file.write(b"\xff\x00\xff")
        reading = Workload(seconds=20, sequential=True, limit=ledger.blocks)
        with pytest.raises(RunError, match="block 100: torn or altered") as caught:
            run(front_end, reading, ledger)
    assert caught.value.kind in MISMATCHES


def test_a_misdirected_write_is_found(serve: Serve, tmp_path: Path) -> None:
    path, disk = image(tmp_path)
    ledger = Ledger(SIZE // 4096, seed=3)
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=8)) as front_end:
        fill_all(front_end, ledger)
        contents = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(7 * 4096)
            file.write(contents[8 * 4096 : 9 * 4096])
        reading = Workload(seconds=20, sequential=True, limit=ledger.blocks)
        with pytest.raises(RunError, match="block 7: another block's contents"):
            run(front_end, reading, ledger)


def test_a_lost_write_is_found(serve: Serve, tmp_path: Path) -> None:
    path, disk = image(tmp_path)
    ledger = Ledger(SIZE // 4096, seed=3)
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=8)) as front_end:
        fill_all(front_end, ledger)
        before = path.read_bytes()
        fill_all(front_end, ledger)
        with path.open("r+b") as file:
            file.seek(9 * 4096)
            file.write(before[9 * 4096 : 10 * 4096])
        reading = Workload(seconds=20, sequential=True, limit=ledger.blocks)
        with pytest.raises(RunError, match="block 9: contents of another generation"):
            run(front_end, reading, ledger)


def test_a_failed_request_is_reported(serve: Serve) -> None:
    fault = ("inject-error.0.event=none", "inject-error.0.iotype=read")
    disk = Disk("blkdebug", ("image.driver=null-co", f"image.size={SIZE}", *fault))
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=4)) as front_end:
        with pytest.raises(RunError, match="status 1") as caught:
            run(front_end, Workload(seconds=20, limit=1000))
    assert caught.value.kind == "LG_IO_ERROR"


def test_a_device_shrunk_behind_the_daemon_is_found(serve: Serve, tmp_path: Path) -> None:
    path, disk = image(tmp_path)
    ledger = Ledger(SIZE // 4096, seed=3)
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=4)) as front_end:
        fill_all(front_end, ledger)
        os.truncate(path, 0)
        with pytest.raises(RunError, match="zeroes instead of data"):
            run(front_end, Workload(seconds=20, limit=1000), ledger)


def test_a_killed_daemon_ends_the_run(serve: Serve) -> None:
    daemon = serve(NULL)
    with FrontEnd(daemon.sockets[0], Geometry(depth=4)) as front_end:
        threading.Timer(0.1, daemon.process.kill).start()
        with pytest.raises(RunError, match="hung up") as caught:
            run(front_end, Workload(seconds=30))
    assert caught.value.kind == "LG_DISCONNECTED"


def test_writes_without_an_answer_may_have_happened_or_not(serve: Serve, tmp_path: Path) -> None:
    _, disk = image(tmp_path)
    ledger = Ledger(SIZE // 4096, seed=3)
    daemon = serve(disk)
    with FrontEnd(daemon.sockets[0], Geometry(depth=32)) as front_end:
        fill_all(front_end, ledger)
        threading.Timer(0.1, daemon.process.kill).start()
        with pytest.raises(RunError, match="hung up"):
            run(front_end, Workload(seconds=30, write_share=1.0), ledger)
    ledger.forget_in_flight()
    daemon.process.wait()
    with FrontEnd(serve(disk).sockets[0], Geometry(depth=32)) as front_end:
        reading = Workload(seconds=20, sequential=True, limit=ledger.blocks)
        assert run(front_end, reading, ledger).reads == ledger.blocks
        run(front_end, Workload(seconds=SHORT, write_share=0.5), ledger)


@pytest.mark.parametrize("wait_for_calls", [True, False])
def test_a_silent_daemon_ends_the_run(serve: Serve, wait_for_calls: bool) -> None:
    daemon = serve(NULL)
    with FrontEnd(daemon.sockets[0], Geometry(depth=4)) as front_end:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            workload = Workload(seconds=30, stall_seconds=0.2, wait_for_calls=wait_for_calls)
            with pytest.raises(RunError, match="stopped answering") as caught:
                run(front_end, workload)
            assert time.monotonic() - begin < 10
        finally:
            daemon.process.send_signal(signal.SIGCONT)
    assert caught.value.kind == "LG_STALLED"


def test_a_back_end_that_never_replies_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ProtocolError, match="GET_FEATURES"):
            FrontEnd(path, Geometry(), timeout=0.1)


def test_descriptors_do_not_leak(serve: Serve) -> None:
    daemon = serve(NULL)
    with FrontEnd(daemon.sockets[0], Geometry()):
        pass
    before = open_fds()
    for _ in range(5):
        with FrontEnd(daemon.sockets[0], Geometry(queues=2)) as front_end:
            run(front_end, Workload(seconds=5, limit=10))
    assert open_fds() <= before


@pytest.mark.parametrize(("depth", "block_size"), [(0, 4096), (20000, 4096), (1, 1000)])
def test_impossible_geometry_is_refused(depth: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=r"depth|block size"):
        Geometry(depth=depth, block_size=block_size)
