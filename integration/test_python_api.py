# SPDX-License-Identifier: Apache-2.0
"""A Python program serves a guest with `vhostblk.Daemon`, in its own process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import vhostblk
from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("vhostblk_only")


def work(directory: Path, socket: Path) -> str:
    with Machine(directory, VhostUserDisk(socket)) as guest:
        guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
        guest.run("echo from a Python program > /mnt/note; umount /mnt")
        note = guest.run("mount -o ro /dev/vda /mnt && cat /mnt/note; umount /mnt")
        guest.power_off()
    return note


async def serve_one_guest(directory: Path, disk: Path) -> str:
    socket = directory / "v.sock"
    async with vhostblk.Daemon(
        blockdevs=[f"driver=file,node-name=file,filename={disk}", "raw,node-name=disk,file=file"],
        exports=[
            {
                "type": "vhost-user-blk",
                "id": "export",
                "node-name": "disk",
                "addr": {"type": "unix", "path": str(socket)},
                "writable": True,
            }
        ],
    ):
        note = await asyncio.to_thread(work, directory, socket)
    assert not socket.exists()
    return note


def test_guest_works_on_a_disk_that_a_python_program_serves(directory: Path) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    assert asyncio.run(serve_one_guest(directory, disk)) == "from a Python program"
    image.check_ext4(disk)
    assert image.ext4_file(disk, "note") == b"from a Python program\n"
