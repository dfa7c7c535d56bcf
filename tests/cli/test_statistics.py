# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1: what the exports have done so far, on stderr."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.process import running, wait_until
from tests.frontend.blk import BlkDriver, RequestError
from tests.frontend.launch import Daemon, Program, raw_file
from tests.frontend.memory import MIB, Memory
from vhostblk.cli.report import duration, percentile, table
from vhostblk.exports.totals import total

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


def row(daemon: Daemon) -> list[str]:
    """Ask for the table; return the columns of its one export."""
    before = daemon.output()
    os.kill(daemon.process.pid, signal.SIGUSR1)
    wait_until(lambda: daemon.output().count("\n") == before.count("\n") + 2)
    header, line = daemon.output().removeprefix(before).splitlines()
    assert header.split() == (
        ["vhostblk:", "export", "requests", "MiB", "failed", "average", "99%", "below"]
    )
    return line.removeprefix("vhostblk: ").split()


@pytest.mark.parametrize("lane", ["python", "express"])
def test_the_table(tmp_path: Path, memory: Memory, lane: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 * MIB))
    export = "id=my-disk,node-name=disk,writable=on,num-queues=2"
    # A socket that the daemon makes can be connected to once it listens to signals, too.
    with Daemon(
        Program.VHOSTBLK,
        tmp_path,
        raw_file(image),
        export,
        inherited=False,
        env={"VHOSTBLK_LANE": lane},
    ) as daemon:
        with daemon.connect() as connection:
            assert row(daemon) == ["my-disk", "0", "0.0", "0", "-", "-"]
            with BlkDriver(connection, memory, num_queues=2) as disk:
                disk.write(0, b"x" * MIB)
                disk.read(0, MIB, queue=1)
                disk.flush()
                disk.discard((0, MIB))
                with pytest.raises(RequestError):
                    disk.read(8 * MIB, 512)
                name, requests, mib, failed, average, average_unit, below, unit = row(daemon)
                assert (name, requests, mib, failed) == ("my-disk", "5", "2.0", "1")
                assert float(average) > 0
                assert float(below) > 0
                assert {average_unit, unit} <= {"s", "ms", "µs"}
            assert row(daemon)[:4] == ["my-disk", "5", "2.0", "1"]  # with the queues stopped


def test_there_may_be_nothing_to_tell(tmp_path: Path) -> None:
    with running(cwd=tmp_path) as daemon:
        assert daemon.stderr is not None
        assert "nothing is exported" in daemon.stderr.readline()
        daemon.send_signal(signal.SIGUSR1)
        assert daemon.stderr.readline() == "vhostblk: no exports\n"
        assert daemon.poll() is None


def counters(**kinds: dict[str, Any]) -> dict[str, Any]:
    nothing = {
        "operations": 0,
        "bytes": 0,
        "failed": 0,
        "total_ns": 0,
        "merged": 0,
        "latency": [0] * 32,
    }
    return {
        **dict.fromkeys(("invalid", "upcalls", "sweeps", "notified", "kicks"), 1),
        **dict.fromkeys(("read", "write", "flush", "unmap"), nothing),
        **kinds,
    }


def reads(count: int, bucket: int) -> dict[str, Any]:
    latency = [0] * 32
    latency[bucket] = count
    return {
        "operations": count,
        "bytes": count << 20,
        "failed": 2,
        "total_ns": count << bucket,
        "merged": 0,
        "latency": latency,
    }


def test_totals() -> None:
    assert total([])["read"]["latency"] == [0] * 32
    summed = total([counters(read=reads(5, 3)), counters(read=reads(7, 4))])
    assert summed["kicks"] == 2
    assert summed["read"]["operations"] == 12
    assert summed["read"]["failed"] == 4
    assert summed["read"]["latency"][3:5] == [5, 7]
    assert summed["write"]["operations"] == 0


def test_rows() -> None:
    statistics = {
        "a": {"total": counters(read=reads(99, 10), write=reads(2, 20))},
        "b": {"total": total([])},
    }
    _, first, second = table(statistics)
    assert first.split() == ["a", "106", "101.0", "5", "22", "µs", "2.1", "ms"]
    assert second.split() == ["b", "0", "0.0", "0", "-", "-"]


def test_percentiles_and_durations() -> None:
    assert percentile([0, 99, 1], 99) == 4
    assert percentile([0, 98, 2], 99) == 8
    assert percentile([0, 0, 1], 99) == 8
    found = [duration(value) for value in (0.5, 5, 999, 1000, 65536, 2e6, 3e9)]
    assert found == ["0.5 ns", "5.0 ns", "999 ns", "1.0 µs", "66 µs", "2.0 ms", "3.0 s"]
