# SPDX-License-Identifier: Apache-2.0
"""The disk changes its size under a guest that works on it, in both lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program
from integration.test_qmp import END_WORK, ONE_MORE_ROUND, WORK, serving, wait_for
from vhostblk.engine import load
from vhostblk.virtio_blk.lane import Lane

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 32 * image.MIB

#: Where the disk has grown it can be written, read, and nothing beyond.
USE_THE_END = """
last=$(( $(cat /sys/block/vda/size) - 8 ))
yes end | head -c 4096 > /run/end
dd if=/run/end of=/dev/vda seek=$last conv=notrunc,fsync
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda skip=$last count=8 | cmp - /run/end
! dd if=/run/end of=/dev/vda seek=$((last + 8)) count=1 conv=notrunc,fsync
"""


@pytest.mark.usefixtures("vhostblk_only")  # QEMU 7.2's doesn't tell the guest
@pytest.mark.parametrize("lane", list(Lane), ids=lambda lane: lane.value)
def test_a_guest_sees_every_size_that_its_disk_gets(
    program: Program, directory: Path, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lane is Lane.EXPRESS and load() is None:
        pytest.skip("no compiled engine")
    monkeypatch.setenv("VHOSTBLK_LANE", lane.value)
    disk = image.create(directory / "disk.img", SIZE)
    with serving(program, Export(disk), directory) as (_, monitor):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            guest.run(WORK)
            for size in (SIZE + 4096, 2 * SIZE, SIZE + image.MIB, 3 * SIZE):
                monitor.execute("block_resize", {"node-name": "disk", "size": size})
                guest.run(wait_for(f"[ $(cat /sys/block/vda/size) = {size // 512} ]"), f"{size}")
                guest.run(USE_THE_END)
                guest.run(ONE_MORE_ROUND)
            guest.run(END_WORK)
            guest.power_off()
    assert disk.stat().st_size == 3 * SIZE
    assert disk.read_bytes()[-4096:] == b"end\n" * 1024
