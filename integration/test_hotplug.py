# SPDX-License-Identifier: Apache-2.0
"""Disks that come and go while the guest runs, over QEMU's QMP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program, serve

if TYPE_CHECKING:
    from pathlib import Path

WAIT_FOR_DISK = """
for attempt in $(seq 200); do
    [ -b /dev/vda ] && exit 0
    usleep 50000
done
exit 1
"""


def test_disk_is_plugged_used_unplugged_and_plugged_again(
    program: Program, directory: Path
) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock")
    with serve(program, Export(disk), directory), Machine(directory) as guest:
        assert guest.run("ls /sys/block | grep -c vd || true") == "0"
        guest.plug(attached)
        guest.run(WAIT_FOR_DISK, "wait for the disk")
        guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
        guest.run("echo first visit > /mnt/note; umount /mnt")

        guest.unplug(attached)
        assert guest.run("ls /sys/block | grep -c vd || true") == "0"
        image.check_ext4(disk)
        assert image.ext4_file(disk, "note") == b"first visit\n"

        guest.plug(attached)
        guest.run(WAIT_FOR_DISK, "wait for the disk again")
        guest.run("mount /dev/vda /mnt && echo second visit >> /mnt/note; umount /mnt")
        guest.power_off()
    image.check_ext4(disk)
    assert image.ext4_file(disk, "note") == b"first visit\nsecond visit\n"


def test_disk_is_unplugged_under_load(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    export = Export(disk, queues=2)
    with serve(program, export, directory) as server, Machine(directory, cpus=2) as guest:
        guest.plug(attached)
        guest.run(WAIT_FOR_DISK, "wait for the disk")
        guest.run("(while dd if=/dev/urandom of=/dev/vda bs=64k; do :; done) > /dev/null 2>&1 &")
        guest.unplug(attached)
        assert guest.run("ls /sys/block | grep -c vd || true") == "0"
        assert server.alive()
        guest.power_off()
