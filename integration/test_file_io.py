# SPDX-License-Identifier: Apache-2.0
"""The ways in which vhostblk reads and writes the image; a guest can't tell them apart."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program, Server, serve

if TYPE_CHECKING:
    from pathlib import Path

WRITE = """
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
for number in 1 2 3 4; do
    dd if=/dev/urandom of=/mnt/file$number bs=16k count=100 2> /dev/null &
done
wait
sync
cat /mnt/file* > /mnt/all
sha256sum < /mnt/all
umount /mnt
mount -o ro /dev/vda /mnt
sha256sum < /mnt/all
umount /mnt
"""

WAYS = {
    "threads": "aio=threads",
    "io_uring": "aio=io_uring",
    "direct": "aio=native,cache.direct=on",
}


def check_guest(server: Server, disk: Path, directory: Path) -> None:
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    with server, Machine(directory, attached, cpus=2) as guest:
        written, seen = guest.run(WRITE, "write").splitlines()
        guest.power_off()
    assert written == seen
    image.check_ext4(disk)
    found = hashlib.sha256(image.ext4_file(disk, "all")).hexdigest()
    assert found == written.split()[0]


@pytest.mark.parametrize("way", WAYS)
def test_guest_works_on_every_kind_of_file_io(program: Program, directory: Path, way: str) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    export = Export(disk, queues=2, node=WAYS[way])
    check_guest(serve(program, export, directory), disk, directory)


@pytest.mark.usefixtures("vhostblk_only")
def test_guest_works_without_the_compiled_engine(directory: Path) -> None:
    disk = image.create(directory / "disk.img", 32 * image.MIB)
    server = serve(Program.VHOSTBLK, Export(disk, queues=2), directory)
    without = replace(
        server,
        environment={"VHOSTBLK_ENGINE": "off"},
        expected_log="file I/O uses a pool of threads",
    )
    check_guest(without, disk, directory)
