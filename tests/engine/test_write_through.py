# SPDX-License-Identifier: Apache-2.0
"""With the write cache off, all data that the engine has acknowledged is on the disk.

`unsynced_bytes` returns how much a crash would lose.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.engine.support import Rig
from tests.engine.test_file_io import linear, opened
from tests.frontend.blk import range_segments
from tests.frontend.ring import Segment
from tests.unsynced import directory_on_disk, unsynced_bytes
from tests.virtio_blk.support import MIB, header, pattern
from vhostblk.virtio_blk.layout import RequestType, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUT, FLUSH, ZEROES = RequestType.OUT, RequestType.FLUSH, RequestType.WRITE_ZEROES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Make a file on a disk, without dirty pages."""
    with directory_on_disk(tmp_path) as directory:
        path = directory / "disk"
        path.write_bytes(pattern(MIB))
        with opened(path) as fd:
            os.fsync(fd)
        yield path


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("buffered", [True, False])
def test_acknowledged_write_is_on_the_disk(
    disk: Path, io: str, buffered: bool, pieces: int
) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered), write_through=True)
        assert queue.run(OUT, 8, send=pattern(8192, 3), pieces=pieces).status == Status.OK
        assert os.pread(fd, 8192, 4096) == pattern(8192, 3)
        assert unsynced_bytes(disk) == 0


def test_with_the_cache_on_it_is_not(disk: Path, io: str) -> None:
    """The counterpart of the other tests: it shows that they can fail."""
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=True))
        found = 0
        for _ in range(10):  # a busy kernel may write it at once
            assert queue.run(OUT, 8, send=pattern(8192, 3)).status == Status.OK
            found = found or unsynced_bytes(disk)
        assert found


@pytest.mark.parametrize("buffered", [True, False])
def test_flush_puts_everything_on_the_disk(disk: Path, io: str, buffered: bool) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered))
        for sector in (0, 8, 64):
            assert queue.run(OUT, sector, send=pattern(4096, 3)).status == Status.OK
        assert queue.run(FLUSH).status == Status.OK
        assert unsynced_bytes(disk) == 0


@pytest.mark.parametrize("buffered", [True, False])
def test_cache_that_is_turned_off_while_the_queue_runs(disk: Path, io: str, buffered: bool) -> None:
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=buffered))
        rig.lib.vb_queue_set_write_through(queue.handle, 1)
        assert queue.run(OUT, 8, send=pattern(4096, 4)).status == Status.OK
        assert unsynced_bytes(disk) == 0


@pytest.mark.parametrize("buffered", [True, False])
def test_write_that_takes_two_system_calls(disk: Path, io: str, buffered: bool) -> None:
    """Each of 1020 descriptors is two segments, as it lies in two regions; all are the same."""
    count, border = 1020, 4 * MIB
    with opened(disk) as fd, Rig(io, layout=((0, border), (border, MIB))) as rig:
        memory = rig.memory
        assert memory.allocate(4096, region=1) == border
        queue = rig.queue(linear(fd, buffered=buffered), write_through=True)
        head, status = memory.allocate(16), memory.allocate(1)
        memory.write(head, header(OUT))
        memory.write(border - 100, pattern(512, 5)[:100])
        memory.write(border, pattern(512, 5)[100:])
        data = [Segment(border - 100, 512)] * count
        queue.ring.add([Segment(head, 16), *data, Segment(status, 1, True)], indirect=True)
        queue.ring.kick(force=True)
        queue.used()
        assert memory.read(status, 1) == bytes([Status.OK])
        assert disk.read_bytes()[: count * 512] == pattern(512, 5) * count
        assert unsynced_bytes(disk) == 0


def test_zeroes_go_up_to_be_flushed(disk: Path, io: str) -> None:
    """The engine would only change the file; the node brings the change to the disk."""
    with opened(disk) as fd, Rig(io) as rig:
        queue = rig.queue(linear(fd, buffered=True), write_through=True)
        pending = queue.request(ZEROES, send=range_segments([(0, 4096)]))
        (upcall,) = rig.wait_upcalls()
        assert upcall.type == ZEROES
        queue.complete(upcall)
        queue.used()
        assert pending.status == Status.OK
        rig.lib.vb_queue_set_write_through(queue.handle, 0)
        assert not queue.in_flight  # it has taken effect
        assert queue.run(ZEROES, send=range_segments([(0, 4096)])).status == Status.OK
        assert queue.stats()["upcalls"] == 1
