# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image keeps writes that were acknowledged while the write cache was off.

The daemon is killed right after the acknowledgement. Tables in its memory are lost then, and with
them all data to which only they refer.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.tools import qemu_img
from tests.frontend.blk import BlkDriver
from tests.frontend.launch import Daemon, Program
from tests.frontend.memory import Memory
from tests.virtio_blk.lanes import lane
from vhostblk.virtio_blk.lane import Lane
from vhostblk.virtio_blk.layout import CONFIG_WRITEBACK_OFFSET, RequestType

__all__ = ["lane"]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 4 << 20
BLOCK = 4096
FORMS = ["cluster_size=64k", "extended_l2=on,cluster_size=512k", "lazy_refcounts=on"]
#: How long each write to slow metadata takes.
DELAY_NS = 200_000_000


class _Run:
    """A daemon that serves an image, and its front-end."""

    def __init__(self, daemon: Daemon, driver: BlkDriver) -> None:
        self.daemon = daemon
        self.driver = driver

    def set_cache(self, on: bool) -> None:
        self.driver.connection.set_config(CONFIG_WRITEBACK_OFFSET, bytes([on]))
        assert int(self.driver.config()["writeback"]) == on

    def wait_for(self, offset: int, data: bytes) -> None:
        """Wait until the disk shows the data of a write in flight."""
        deadline = time.monotonic() + 20
        while True:
            request = self.driver.submit(RequestType.IN, offset, data_in=[len(data)])
            self.driver.kick()
            ((done, found),) = self.driver.wait_some()
            assert done is request, "the write has ended before"
            if found == data:
                return
            assert time.monotonic() < deadline


@contextmanager
def _serving(directory: Path, blockdevs: list[str], lane: Lane, export: str = "") -> Iterator[_Run]:
    """Serve the node `disk` on a lane."""
    memory = Memory()
    daemon = Daemon(
        Program.VHOSTBLK,
        directory,
        blockdevs,
        f"id=export,node-name=disk,writable=on{export}",
        env={"VHOSTBLK_LANE": lane.value},
    )
    with daemon, BlkDriver(daemon.connect(), memory) as driver:
        yield _Run(daemon, driver)
    memory.close()


def _image(path: Path, form: str) -> list[str]:
    """Make an image; return how it is opened."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
    return [
        f"driver=file,node-name=file,filename={path},discard=unmap",
        "driver=qcow2,node-name=disk,file=file,discard=unmap",
    ]


def _slow_image(path: Path) -> list[str]:
    """Make an image with slow metadata and a fast data file."""
    data = path.with_suffix(".data")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, SIZE)
    rule = {"event": "none", "iotype": "write", "errno": 0, "delay-ns": DELAY_NS}
    return [
        f"driver=file,node-name=file,filename={path},discard=unmap",
        f"driver=file,node-name=data,filename={data},discard=unmap",
        ",".join(
            [
                "driver=blkdebug,node-name=slow,image=file",
                *(f"inject-error.0.{name}={value}" for name, value in rule.items()),
            ]
        ),
        "driver=qcow2,node-name=disk,file=slow,data-file=data,discard=unmap",
    ]


def _content(path: Path, raw: Path) -> bytes:
    """Return what QEMU reads; the dead daemon's locks may still exist for a moment."""
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()


@pytest.mark.parametrize(
    ("lane", "form"),
    [(Lane.PYTHON, FORMS[0]), *((Lane.EXPRESS, form) for form in FORMS)],
    indirect=["lane"],
)
def test_write_to_a_cluster_that_was_new_before_the_cache_was_turned_off(
    tmp_path: Path, directory: Path, lane: Lane, form: str
) -> None:
    path = tmp_path / "disk.qcow2"
    with _serving(directory, _image(path, form), lane) as run:
        run.driver.write(0, b"\x01" * BLOCK)
        run.set_cache(on=False)
        run.driver.write(BLOCK, b"\x02" * BLOCK)
        run.daemon.kill()
    assert _content(path, tmp_path / "raw")[BLOCK : 2 * BLOCK] == b"\x02" * BLOCK


def test_second_write_to_a_new_cluster_while_the_tables_are_written(
    tmp_path: Path, directory: Path, lane: Lane
) -> None:
    path = tmp_path / "disk.qcow2"
    with _serving(directory, _slow_image(path), lane, ",writethrough=on") as run:
        run.driver.submit(RequestType.OUT, 0, data_out=[b"\x01" * BLOCK])
        run.driver.kick()
        run.wait_for(0, b"\x01" * BLOCK)
        second = run.driver.submit(RequestType.OUT, BLOCK, data_out=[b"\x02" * BLOCK])
        run.driver.kick()
        while second.used_length is None:
            run.driver.wait_some()
        run.daemon.kill()
    assert second.status == 0
    assert _content(path, tmp_path / "raw")[BLOCK : 2 * BLOCK] == b"\x02" * BLOCK


def test_bursts_after_the_cache_was_turned_off(tmp_path: Path, directory: Path, lane: Lane) -> None:
    """Half of the clusters are new, the other half was written before."""
    path, count, step = tmp_path / "disk.qcow2", 30, 64 << 10

    def make(number: int) -> tuple[int, int, bytes]:
        return RequestType.OUT, number * step + BLOCK, bytes([2 + number]) * BLOCK

    with _serving(directory, _image(path, FORMS[0]), lane) as run:
        driver = run.driver
        driver.run_at_depth(count, count, lambda at: (RequestType.OUT, at * step, b"\x01" * 512))
        run.set_cache(on=False)
        done = driver.run_at_depth(count, count, make)
        done += driver.run_at_depth(count, count, lambda at: make(count + at))
        assert all(request.status == 0 for request, _ in done)
        run.daemon.kill()
    found = _content(path, tmp_path / "raw")
    for number in range(2 * count):
        start = number * step + BLOCK
        assert found[start : start + BLOCK] == bytes([2 + number]) * BLOCK


def test_zeroes_while_the_cache_is_off(tmp_path: Path, directory: Path, lane: Lane) -> None:
    path, length = tmp_path / "disk.qcow2", 128 << 10
    with _serving(directory, _image(path, FORMS[0]), lane) as run:
        run.driver.write(0, b"\x01" * (4 * length))
        run.driver.flush()
        run.set_cache(on=False)
        run.driver.write_zeroes((BLOCK, length))
        run.driver.write_zeroes((BLOCK + 2 * length, length), unmap=True)
        run.daemon.kill()
    half = b"\x01" * BLOCK + bytes(length) + b"\x01" * (length - BLOCK)
    assert _content(path, tmp_path / "raw")[: 4 * length] == 2 * half
