# SPDX-License-Identifier: Apache-2.0
"""What the engine writes to guest memory by itself is in the dirty log, whichever way it goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.support import EngineQueue, Rig
from tests.virtio_blk.dirty_log import Log, changed, pages, snapshot
from tests.virtio_blk.support import MIB, Pending, pattern
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtqueue.dirty_log import LOG_PAGE, DirtyLog
from vhostblk.virtqueue.queue_log import QueueLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT, GET_ID = RequestType.IN, RequestType.OUT, RequestType.GET_ID

LOG_BYTES = ((1 << 32) + 8 * MIB) // LOG_PAGE // 8

#: The file ends inside a page, long before the device does.
FILE_BYTES = 300 * 1024 + 700


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk"
    path.write_bytes(pattern(FILE_BYTES))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(LOG_BYTES)
    yield log
    log.close()


def start_logging(queue: EngineQueue, log: Log, *, used: bool = True) -> QueueLog:
    """Have everything noted; what is returned has to be kept."""
    described = log.describe()
    mapped = DirtyLog(described)
    os.close(described.fd)
    entry = QueueLog(mapped, data=True, used_addr=queue.ring.used_addr if used else None)
    queue.hold()
    queue.wait_idle()
    queue.rig.lib.vb_queue_set_log(queue.handle, entry.encoded)
    queue.release()
    return entry


def used_pages(queue: EngineQueue) -> set[int]:
    return pages(queue.ring.used_addr, 6 + 8 * queue.ring.size)


def burst(queue: EngineQueue, rng: np.random.Generator) -> list[Pending]:
    """Make requests available, many of which follow each other in the file."""
    made, offset = [], 512 * int(rng.integers(0, 900))
    for _ in range(int(rng.integers(1, 5))):
        kind = int(rng.choice([IN, IN, IN, OUT, GET_ID]))
        pieces = int(rng.choice([1, 1, 2, 4]))
        length = 4 * 512 * int(rng.integers(1, 12))
        data = {"send": os.urandom(length)} if kind == OUT else {"want": length}
        align = int(rng.choice([16, 512, 4096]))
        made.append(
            queue.request(kind, offset // 512, pieces=pieces, kick=False, align=align, **data)
        )
        offset += length if rng.random() < 0.8 else 8192
    return made


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("io", ["uring", "pool"])
@pytest.mark.parametrize("seed", range(3))
def test_what_changes_is_noted_and_no_more(
    disk: int, log: Log, io: str, buffered: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    extents = ExtentMap(
        ExtentKind.LINEAR,
        size=MIB,
        fd=disk,
        writable=True,
        flush=Treatment.FILE,
        buffered=buffered,
    )
    with Rig(io) as rig:
        queue = rig.queue(extents, event_idx=bool(seed % 2))
        entry = start_logging(queue, log)
        assert log.take() == used_pages(queue)
        for _ in range(12):
            queue.hold()
            queue.wait_idle()
            made = burst(queue, rng)
            queue.ring.publish()
            before = snapshot(rig.memory)
            log.take()
            queue.ring.kick(force=True)
            queue.release()
            while queue.ring.in_flight:
                queue.ring.poll()
            queue.hold()
            queue.wait_idle()
            noted = log.take()
            may = used_pages(queue)
            for pending in made:
                assert pending.status in (Status.OK, Status.IOERR)
                may |= pages(pending._status, 1) | pages(pending.address, pending._length)
            assert changed(before, snapshot(rig.memory)) <= noted
            assert noted <= may
            queue.release()
        assert entry.data


def test_writes_are_not_noted(disk: int, log: Log) -> None:
    with Rig() as rig:
        extents = ExtentMap(ExtentKind.LINEAR, size=MIB, fd=disk, writable=True, buffered=True)
        queue = rig.queue(extents)
        entry = start_logging(queue, log, used=False)
        pending = queue.run(OUT, send=bytes(65536), align=4096)
        assert pending.status == Status.OK
        assert log.take() == pages(pending._status, 1)
        assert entry.data


def test_nothing_is_noted_when_it_is_off(disk: int, log: Log) -> None:
    with Rig() as rig:
        queue = rig.queue(ExtentMap(ExtentKind.LINEAR, size=MIB, fd=disk, buffered=True))
        entry = start_logging(queue, log)
        queue.hold()
        queue.wait_idle()
        rig.lib.vb_queue_set_log(queue.handle, rig.ffi.NULL)
        log.take()
        queue.release()
        assert queue.run(IN, want=4096).status == Status.OK
        assert log.take() == set()
        assert entry.data


def test_what_is_behind_the_end_of_the_log_is_ignored() -> None:
    log = Log(1)
    os.ftruncate(log._fd, 8192)
    described = log.describe()
    entry = QueueLog(DirtyLog(described), data=True, used_addr=None)
    os.close(described.fd)
    ranges = [(0, 1), (7 * LOG_PAGE, 2 * LOG_PAGE), (1 << 63, 1), ((1 << 64) - 1, 1)]
    addrs, lengths = np.array(ranges, np.uint64).T
    entry.mark(addrs, lengths)
    assert log.take() == {0, 7}
    assert os.pread(log._fd, 8192, 0) == bytes(8192)
    log.close()


def test_nothing_is_noted_of_an_empty_range() -> None:
    log = Log(8)
    described = log.describe()
    entry = QueueLog(DirtyLog(described), data=True, used_addr=None)
    os.close(described.fd)
    addrs = np.array([0, 5 * LOG_PAGE, 7 * LOG_PAGE + 100, 9 * LOG_PAGE], np.uint64)
    entry.mark(addrs, np.array([0, 0, 0, 1], np.uint64))
    assert log.take() == {9}
    log.close()
