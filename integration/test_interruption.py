# SPDX-License-Identifier: Apache-2.0
"""Either side ends while I/O runs: the other one lives on, and what was synced is there."""

from __future__ import annotations

import hashlib
import signal
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program, serve

if TYPE_CHECKING:
    from pathlib import Path

#: Syncs a known file, then writes without end; returns when the writing has begun.
SYNC_THEN_LOAD = """
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/mnt/synced bs=64k count=16 conv=fsync 2> /dev/null
sync
(while [ ! -e /run/stop ]; do
    for number in 1 2 3; do
        dd if=/dev/urandom of=/mnt/load$number bs=64k count=32 conv=fsync
        echo > /run/loading
    done
done; echo > /run/stopped) > /dev/null 2>&1 &
while [ ! -e /run/loading ]; do usleep 20000; done
sha256sum < /mnt/synced
"""

#: Succeeds when the load goes on.
LOAD_GOES_ON = """
rm /run/loading
while [ ! -e /run/loading ]; do usleep 20000; done
"""

STOP_LOAD = """
echo > /run/stop
while [ ! -e /run/stopped ]; do usleep 20000; done
umount /mnt
"""

READ_BACK = """
mount /dev/vda /mnt
sha256sum < /mnt/synced
umount /mnt
e2fsck -fn /dev/vda > /dev/null
"""


def test_new_guest_connects_after_qemu_was_killed(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", 64 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    with serve(program, Export(disk, queues=2), directory) as server:
        with Machine(directory / "first", attached, cpus=2) as guest:
            digest = guest.run(SYNC_THEN_LOAD, "sync, then load").split()[0]
            guest.kill()
        assert server.alive()
        with Machine(directory / "second", attached, cpus=2) as guest:
            assert guest.run(READ_BACK, "read back").split()[0] == digest
            guest.power_off()
    image.check_ext4(disk)
    assert hashlib.sha256(image.ext4_file(disk, "synced")).hexdigest() == digest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_daemon_stops_cleanly_under_load(
    program: Program, directory: Path, number: signal.Signals
) -> None:
    disk = image.create(directory / "disk.img", 64 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2)
    with (
        serve(program, Export(disk, queues=2), directory) as server,
        Machine(directory, attached, cpus=2) as guest,
    ):
        digest = guest.run(SYNC_THEN_LOAD, "sync, then load").split()[0]
        assert server.stop(number) == 0
        assert not server.pidfile.exists()
        assert not (directory / "v.sock").exists()
        # The guest's disk stands still; the guest does not.
        assert guest.run("echo alive") == "alive"
        assert guest.alive()
    image.recover_ext4(disk)
    image.check_ext4(disk)
    assert hashlib.sha256(image.ext4_file(disk, "synced")).hexdigest() == digest


def test_guest_works_on_when_the_daemon_is_restarted(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", 64 * image.MIB)
    attached = VhostUserDisk(directory / "v.sock", queues=2, reconnect=1)
    with (
        serve(program, Export(disk, queues=2), directory) as server,
        Machine(directory, attached, cpus=2) as guest,
    ):
        digest = guest.run(SYNC_THEN_LOAD, "sync, then load").split()[0]
        assert server.stop() == 0
        server.start()
        guest.run(LOAD_GOES_ON, "load goes on")
        assert guest.run("dmesg | grep -c 'I/O error' || true") == "0"
        guest.run(STOP_LOAD, "stop load")
        assert guest.run(READ_BACK, "read back").split()[0] == digest
        guest.power_off()
    image.check_ext4(disk)
