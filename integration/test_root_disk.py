# SPDX-License-Identifier: Apache-2.0
"""A system on a qcow2 disk: packages are installed, the disk is snapshotted, then all is killed.

The short form is a system made of busybox. `pytest integration/test_root_disk.py --debian` does the
same with Debian: five minutes, root and the network to make it (once).
"""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.debian import debian_system
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.miniature import miniature_system
from integration.guest.server import Export, Program
from integration.qcow2.tools import qemu_img, qemu_img_status
from integration.test_qmp import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.guest.monitor import Monitor
    from integration.guest.server import Server
    from integration.guest.system import System

#: What an image has grown by when an installation is well under way.
UNDER_WAY = 1 * image.MIB
#: An installation on an emulated processor, beside other tests.
PATIENCE = 300.0
#: Makes an image on another one.
CREATE = ("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b")


@dataclass(frozen=True)
class RootExport(Export):
    """The root disk as `disk`, and the packages beside it."""

    archive: str = ""

    def arguments(self, address: str) -> list[str]:
        """See `Export`."""
        file = f"driver=file,node-name=file,filename={self.image},discard=unmap"
        archive = f"driver=file,node-name=archive,filename={self.archive},read-only=on"
        export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on{self.extra}"
        second = f"addr.type=unix,addr.path={self.image.parent}/archive.sock"
        return [
            *("--blockdev", file),
            *("--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"),
            *("--blockdev", archive),
            *("--export", f"{export},{address}"),
            *("--export", f"type=vhost-user-blk,id=archive,node-name=archive,{second}"),
        ]


@contextmanager
def booted(
    program: Program, system: System, disk: Path
) -> Iterator[tuple[Machine, Server, Monitor]]:
    """Boot a system from a disk, with the packages at hand."""
    directory = disk.parent
    attached = VhostUserDisk(directory / "v.sock"), VhostUserDisk(directory / "archive.sock", "d1")
    # QEMU's export tells the guest that there is no write cache to flush, but has one.
    extra = ",writethrough=on" if program is Program.QEMU else ""
    export = RootExport(disk, archive=str(system.archive), extra=extra)
    with serving(program, export, directory) as (server, monitor):
        with Machine(directory, *attached, memory=512, root="/dev/vda") as guest:
            guest.run("mount -o ro /dev/vdb /packages")
            yield guest, server, monitor


def script(packages: tuple[str, ...], what: str) -> str:
    """Make a system's script one for these packages."""
    return f"packages='{' '.join(packages)}'\n{what}"


def wait_grown(path: Path) -> None:
    """Wait until a guest has written much to an image."""
    before = image.allocated(path)
    deadline = time.monotonic() + PATIENCE
    while image.allocated(path) < before + UNDER_WAY:
        assert time.monotonic() < deadline, f"{path} doesn't grow"
        time.sleep(0.01)


def check_no_errors(path: Path) -> None:
    """Have qemu-img find nothing wrong with an image, but for leaks."""
    status, said = qemu_img_status("check", "-f", "qcow2", path)
    assert status in (0, 3), said


def check_recovers(
    program: Program,
    system: System,
    disk: Path,
    complete: tuple[str, ...],
    interrupted: tuple[str, ...],
) -> None:
    """Boot from a disk that was cut off; what was complete is there, the rest can be made so."""
    check_no_errors(disk)
    with booted(program, system, disk) as (guest, _, _):
        guest.run(script(complete, system.check), "check", PATIENCE)
        guest.run(script(interrupted, system.recover + system.check), "recover", PATIENCE)
        guest.power_off()
    check_no_errors(disk)
    raw = disk.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    image.check_ext4(raw)
    raw.unlink()


def check_story(program: Program, system: System, directory: Path) -> None:
    """Install, take snapshots in the middle, kill in the middle, and boot from all there is."""
    packages = system.packages
    disk, overlay = directory / "disk.qcow2", directory / "overlay.qcow2"
    qemu_img(*CREATE, system.root, disk)
    with booted(program, system, disk) as (guest, server, monitor):
        guest.run(script(packages.before, system.install), "before", PATIENCE)
        guest.run("sync")
        guest.run_in_background(script(packages.meanwhile, system.install), "meanwhile")
        wait_grown(disk)
        monitor.execute("blockdev-snapshot-internal-sync", {"device": "disk", "name": "internal"})
        wait_grown(disk)
        arguments = {"node-name": "disk", "snapshot-file": str(overlay)}
        monitor.execute("blockdev-snapshot-sync", arguments | {"snapshot-node-name": "overlay"})
        guest.finish(PATIENCE)
        guest.run("sync")
        guest.run_in_background(script(packages.at_last, system.install), "at last")
        wait_grown(overlay)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        guest.end()
    internal, external = directory / "internal.qcow2", directory / "external.qcow2"
    check_no_errors(disk)
    shutil.copy(disk, internal)
    qemu_img("snapshot", "-a", "internal", internal)
    qemu_img(*CREATE, disk, external)
    check_recovers(program, system, overlay, packages.before + packages.meanwhile, packages.at_last)
    for snapshot in (internal, external):
        check_recovers(program, system, snapshot, packages.before, packages.meanwhile)


@pytest.mark.timeout(600)
def test_packages_survive_snapshots_and_sudden_death(program: Program, directory: Path) -> None:
    check_story(program, miniature_system(directory), directory)


@pytest.mark.timeout(1800)
def test_debian_survives_snapshots_and_sudden_death(
    program: Program, directory: Path, debian: bool
) -> None:
    if not debian:
        pytest.skip("takes minutes: --debian runs it")
    check_story(program, debian_system(), directory)
