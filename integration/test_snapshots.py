# SPDX-License-Identifier: Apache-2.0
"""A running guest's disk gets overlays; the guest goes on, what lies below stays what it was."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export
from integration.qcow2.tools import check, qemu_img
from integration.test_qmp import END_WORK, ONE_MORE_ROUND, WORK, serving

if TYPE_CHECKING:
    from pathlib import Path

    from integration.guest.monitor import Monitor
    from integration.guest.server import Program

SIZE = 16 * image.MIB


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(monitor: Monitor, node: str, path: Path) -> None:
    arguments = {"node-name": node, "snapshot-file": str(path), "snapshot-node-name": path.name}
    monitor.execute("blockdev-snapshot-sync", arguments)


def test_a_guest_does_not_notice_snapshots(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    first, second = directory / "first", directory / "second"
    with serving(program, Export(disk), directory) as (_, monitor):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            guest.run(WORK)
            guest.run(ONE_MORE_ROUND)
            snapshot(monitor, "disk", first)
            taken = digest(disk)
            guest.run(ONE_MORE_ROUND)
            snapshot(monitor, "first", second)
            below = digest(first)
            guest.run(ONE_MORE_ROUND)
            guest.run(END_WORK)
            shown = guest.run("sha256sum < /dev/vda").split()[0]
            guest.power_off()
    assert (digest(disk), digest(first)) == (taken, below)
    for path in (first, second):
        check(path)
    raw = directory / "raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", second, raw)
    assert digest(raw) == shown
