# SPDX-License-Identifier: Apache-2.0
"""A backup of a guest's disk that is taken while the guest goes on writing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program
from integration.test_qmp import END_WORK, ONE_MORE_ROUND, WORK, serving
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import Connection
from tests.frontend.memory import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from integration.guest.monitor import Monitor

SIZE = 16 * image.MIB


def add_filter(monitor: Monitor, target: Path) -> None:
    """Make the filter, not in use yet."""
    nodes: list[dict[str, object]] = [
        {"driver": "file", "node-name": "target", "filename": str(target)},
        {"driver": "copy-before-write", "node-name": "cbw", "file": "file", "target": "target"},
    ]
    for node in nodes:
        monitor.execute("blockdev-add", {**node, "discard": "unmap"})


def export_snapshot(monitor: Monitor, socket: Path) -> None:
    access = {"driver": "snapshot-access", "node-name": "snapshot", "file": "cbw"}
    monitor.execute("blockdev-add", {**access, "read-only": True})
    addr = {"type": "unix", "path": str(socket)}
    export = {"type": "vhost-user-blk", "id": "backup", "node-name": "snapshot", "addr": addr}
    monitor.execute("block-export-add", export)


def put_below_disk(monitor: Monitor, name: str) -> None:
    definition = {"driver": "raw", "node-name": "disk", "file": name, "discard": "unmap"}
    monitor.execute("blockdev-reopen", {"options": [definition]})


def read_all(socket: Path) -> bytes:
    """Do what a backup program does."""
    memory = Memory()
    try:
        with BlkDriver(Connection.connect(socket), memory) as driver:
            assert driver.capacity == SIZE
            step = 256 << 10
            return b"".join(driver.read(offset, step) for offset in range(0, SIZE, step))
    finally:
        memory.close()


@pytest.mark.usefixtures("vhostblk_only")
def test_a_backup_is_the_disk_at_its_point_in_time(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    image.fill(disk, bytes(range(1, 252)))
    target = image.create(directory / "target.img", SIZE)
    backup = directory / "backup.sock"
    with serving(program, Export(disk), directory) as (_, monitor):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            guest.run(WORK)
            guest.run(ONE_MORE_ROUND)
            add_filter(monitor, target)
            guest.run(ONE_MORE_ROUND)
            # While the machine stands still its disk does so too: this is the point in time.
            guest.monitor.execute("stop")
            taken = disk.read_bytes()
            put_below_disk(monitor, "cbw")
            guest.monitor.execute("cont")
            guest.run(ONE_MORE_ROUND)
            export_snapshot(monitor, backup)
            guest.run(ONE_MORE_ROUND)
            guest.run(ONE_MORE_ROUND)
            first = read_all(backup)
            guest.run(ONE_MORE_ROUND)
            assert disk.read_bytes() != taken
            second = read_all(backup)
            monitor.execute("block-export-del", {"id": "backup", "mode": "hard"})
            monitor.wait_event("BLOCK_EXPORT_DELETED", id="backup")
            # With a reader, the filter does not share the disk with other writers.
            monitor.execute("blockdev-del", {"node-name": "snapshot"})
            put_below_disk(monitor, "file")
            guest.run(ONE_MORE_ROUND)
            for name in ("cbw", "target"):
                monitor.execute("blockdev-del", {"node-name": name})
            guest.run(END_WORK)
            guest.power_off()
    digest = hashlib.sha256(taken).hexdigest()
    assert hashlib.sha256(first).hexdigest() == digest
    assert hashlib.sha256(second).hexdigest() == digest
