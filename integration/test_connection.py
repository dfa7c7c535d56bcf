# SPDX-License-Identifier: Apache-2.0
"""How the daemon comes by its socket and its image: passed descriptors, the short form, locks."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import QEMU, Machine, VhostUserDisk
from integration.guest.programs import qemu_program
from integration.guest.server import Export, Program, Server, listen, serve

if TYPE_CHECKING:
    from pathlib import Path


LOCKED = re.compile('Failed to get (shared )?"write" lock')

WRITE_AND_CHECK = """
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
echo through a passed descriptor > /mnt/note
umount /mnt
mount -o ro /dev/vda /mnt
cat /mnt/note
umount /mnt
"""


def arguments_for_fd(program: Program, disk: Path, fd: int) -> list[str]:
    """The short form where there is one."""
    address = f"addr.type=fd,addr.str={fd}"
    if program is Program.VHOSTBLK:
        return [str(disk), f"--{address},num-queues=2,writable=on"]
    return Export(disk, queues=2).arguments(address)


def test_guest_works_through_a_passed_descriptor(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    with listen(attached.path) as listener:
        fd = listener.fileno()
        server = Server(program, arguments_for_fd(program, disk, fd), directory, pass_fds=(fd,))
        with server, Machine(directory, attached, cpus=2) as guest:
            assert guest.run("ls /sys/block/vda/mq | wc -l") == "2"
            assert guest.run(WRITE_AND_CHECK) == "through a passed descriptor"
            guest.power_off()
    image.check_ext4(disk)
    assert image.ext4_file(disk, "note") == b"through a passed descriptor\n"


def qemu_with_direct_drive(disk: Path, *more: str) -> list[str]:
    """A QEMU that opens the image itself; it stops before the first instruction."""
    drive = f"driver=raw,node-name=disk,file.driver=file,file.filename={disk}"
    return [
        *(QEMU, "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-blockdev", drive),
        *("-device", "virtio-blk-pci,drive=disk", *more),
    ]


def test_daemon_refuses_an_image_that_qemu_uses(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", image.MIB)
    command = qemu_with_direct_drive(disk, "-qmp", "stdio")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        try:
            assert b"QMP" in qemu.stdout.readline()
            # The greeting comes early; commands are answered when the devices are there.
            qemu.stdin.write(b'{"execute": "qmp_capabilities"}')
            qemu.stdin.flush()
            assert b"return" in qemu.stdout.readline()
            server = serve(program, Export(disk), directory)
            done = server.run_to_end()
        finally:
            qemu.kill()
    assert done.returncode == 1
    assert LOCKED.search(done.stderr), done.stderr
    assert not (directory / "v.sock").exists()
    assert not server.pidfile.exists()


def test_qemu_refuses_an_image_that_the_daemon_uses(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", image.MIB)
    with serve(program, Export(disk), directory):
        done = subprocess.run(
            qemu_with_direct_drive(disk), capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 1
        assert LOCKED.search(done.stderr), done.stderr


@pytest.mark.usefixtures("vhostblk_only")
def test_a_guest_that_only_reads_shares_the_image_with_readers(directory: Path) -> None:
    disk = image.create(directory / "disk.img", image.MIB)
    with serve(Program.VHOSTBLK, Export(disk, writable=False), directory):
        done = subprocess.run(
            [*qemu_program("qemu-io"), "-r", "-f", "raw", "-c", "read 0 512", disk],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr
