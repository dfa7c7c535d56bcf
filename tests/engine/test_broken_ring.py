# SPDX-License-Identifier: Apache-2.0
"""An io_uring that the kernel stops serving fails an iothread's requests and hangs none.

That takes two seconds, for which they are tried again (`PATIENCE_NS`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.support import Rig
from tests.virtio_blk.support import MIB
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.virtio_blk.layout import RequestType, Status

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH


def rings() -> set[int]:
    """The descriptors of this process that are io_urings."""
    return {
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and "io_uring" in str(entry.readlink())
    }


@pytest.fixture
def before() -> set[int]:
    return rings()


def break_ring(before: set[int]) -> None:
    """Put another file in the place of the ring, so that every io_uring_enter(2) fails."""
    (ring,) = rings() - before
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, ring)
    os.close(null)


def test_requests_fail(before: set[int], tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    fd = os.open(path, os.O_RDWR)
    extents = ExtentMap(ExtentKind.LINEAR, MIB, fd=fd, writable=True, flush=Treatment.FILE)
    with Rig() as rig:
        queue = rig.queue(extents, size=256)
        assert queue.run(IN, want=512).status == Status.OK
        break_ring(before)
        for _ in range(2):
            pending = [queue.request(IN, number, want=512, kick=False) for number in range(60)]
            queue.ring.kick(force=True)
            queue.used(60)
            assert {request.status for request in pending} == {Status.IOERR}
        assert queue.run(FLUSH).status == Status.IOERR
        # It can be held, and has no file open any more.
        queue.hold()
        queue.wait_idle()
        queue.release()
    os.close(fd)


def test_what_the_kernel_has_fails(before: set[int]) -> None:
    """It is a read from an empty pipe."""
    reading, writing = os.pipe()
    with Rig() as rig:
        queue = rig.queue(ExtentMap(ExtentKind.LINEAR, MIB, fd=reading))
        read = queue.request(IN, want=512)
        rig.wait_until(lambda: queue.in_flight)
        break_ring(before)
        os.write(writing, bytes(512))
        queue.used()
        assert read.status == Status.IOERR
    os.close(reading)
    os.close(writing)
