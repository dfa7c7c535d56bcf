# SPDX-License-Identifier: Apache-2.0
"""A guest makes a file system, writes, reboots and reads back; then the image is looked at."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program, serve

if TYPE_CHECKING:
    from pathlib import Path

FILES = 6

WRITE = f"""
mkfs.ext4 -q -E nodiscard /dev/vda
mount /dev/vda /mnt
for number in $(seq {FILES}); do
    dd if=/dev/urandom of=/mnt/file$number bs=64k count=$((number * 4)) 2> /dev/null &
done
wait
sync
cd /mnt && sha256sum file* | tee sums
sync
"""

TRIM_AND_REMOUNT = """
dd if=/dev/zero of=/mnt/temporary bs=1M count=8 2> /dev/null
sync
rm /mnt/temporary
fstrim /mnt
umount /mnt
mount /dev/vda /mnt
cd /mnt && sha256sum -c sums > /dev/null
"""

READ_BACK = """
e2fsck -p /dev/vda
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c sums
"""


@pytest.mark.parametrize("queues", [1, 4])
def test_file_system_survives_reboot_and_is_right_from_outside(
    program: Program, directory: Path, queues: int
) -> None:
    disk = image.create(directory / "disk.img", 64 * image.MIB)
    with serve(program, Export(disk, queues=queues), directory):
        with Machine(
            directory, VhostUserDisk(directory / "v.sock", queues=queues), cpus=queues
        ) as guest:
            assert guest.run("ls /sys/block/vda/mq | wc -l") == str(queues)
            sums = guest.run(WRITE, "write")
            guest.run(TRIM_AND_REMOUNT, "trim and remount")
            guest.run("umount /mnt && e2fsck -fn /dev/vda", "check")
            guest.reboot()
            assert guest.run(READ_BACK, "read back").count(": OK") == FILES
            guest.run("umount /mnt")
            guest.power_off()
    image.check_ext4(disk)
    assert len(sums.splitlines()) == FILES
    for line in sums.splitlines():
        digest, name = line.split()
        assert hashlib.sha256(image.ext4_file(disk, name)).hexdigest() == digest
