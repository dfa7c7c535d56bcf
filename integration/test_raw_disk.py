# SPDX-License-Identifier: Apache-2.0
"""The disk without a file system: every byte where the guest put it, and what sysfs says."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Export, Program, serve

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 16 * image.MIB
#: (first sector, sectors): both ends of the disk, odd places, and more than one request's worth.
WRITES = ((0, 1), (3, 2), (2047, 4), (9001, 2345), (SIZE // 512 - 1, 1))
#: (first sector, sectors) handed back afterwards.
DISCARDED = (10000, 1024)
#: Not zero and not a power of two long, so that nothing lands right by chance.
BACKGROUND = bytes(range(1, 252))


def guest_pattern(sector: int, sectors: int) -> bytes:
    """What `write_script` writes there."""
    line = f"sector {sector} ".encode()
    return (line * (sectors * 512 // len(line) + 1))[: sectors * 512]


def write_script(sector: int, sectors: int) -> str:
    return f"""
    yes 'sector {sector} ' | tr -d '\\n' | head -c {sectors * 512} > /run/pattern
    dd if=/run/pattern of=/dev/vda bs=512 seek={sector} conv=notrunc,fsync 2> /dev/null
    """


def test_every_byte_is_where_the_guest_put_it(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    image.fill(disk, BACKGROUND)
    expected = bytearray(disk.read_bytes())
    with serve(program, Export(disk), directory):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            assert guest.run("sha256sum < /dev/vda").split()[0] == image.sha256(disk)
            for sector, sectors in WRITES:
                guest.run(write_script(sector, sectors), f"write {sector}")
                pattern = guest_pattern(sector, sectors)
                expected[sector * 512 : sector * 512 + len(pattern)] = pattern
            # fsync has returned in the guest: the bytes are in the file before the daemon ends.
            assert disk.read_bytes() == expected
            seen = guest.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum < /dev/vda").split()[0]
            assert seen == hashlib.sha256(expected).hexdigest()
            guest.power_off()
    assert disk.read_bytes() == expected


def test_discard_and_write_zeroes_free_storage_on_the_host(
    program: Program, directory: Path
) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    image.fill(disk, BACKGROUND)
    expected = bytearray(disk.read_bytes())
    first, sectors = DISCARDED
    with serve(program, Export(disk), directory):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            before = image.allocated(disk)
            guest.run(f"blkdiscard -o {first * 512} -l {sectors * 512} /dev/vda", "discard")
            assert image.allocated(disk) <= before - sectors * 512 + 2 * 4096
            expected[first * 512 : (first + sectors) * 512] = bytes(sectors * 512)
            # A file system on top, filled, emptied and trimmed.
            guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
            guest.run("dd if=/dev/urandom of=/mnt/big bs=1M count=8 2> /dev/null; sync")
            full = image.allocated(disk)
            guest.run("rm /mnt/big; sync; fstrim /mnt; umount /mnt")
            assert image.allocated(disk) <= full - 7 * image.MIB
            guest.power_off()
    image.check_ext4(disk)


def test_read_only_disk_can_be_read_and_not_written(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    (directory / "tree").mkdir()
    (directory / "tree" / "greeting").write_text("hello from the host\n")
    environment = image.ENVIRONMENT
    subprocess.run(["mkfs.ext4", "-q", "-d", directory / "tree", disk], check=True, env=environment)
    digest = image.sha256(disk)
    disk.chmod(0o444)
    with serve(program, Export(disk, writable=False), directory):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            assert guest.run("cat /sys/block/vda/ro") == "1"
            guest.run("mount -o ro,noload /dev/vda /mnt")
            assert guest.run("cat /mnt/greeting; umount /mnt") == "hello from the host"
            guest.run("! dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync")
            assert guest.run("sha256sum < /dev/vda").split()[0] == digest
            guest.power_off()
    assert image.sha256(disk) == digest


def queue_attribute(guest: Machine, name: str) -> str:
    return guest.run(f"cat /sys/block/vda/queue/{name}")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_the_guest_sees_the_geometry(program: Program, directory: Path, block_size: int) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    export = Export(disk, extra=f"logical-block-size={block_size}")
    with serve(program, export, directory):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            assert guest.run("cat /sys/block/vda/size") == str(SIZE // 512)
            assert queue_attribute(guest, "logical_block_size") == str(block_size)
            assert int(queue_attribute(guest, "discard_max_bytes")) > 0
            assert int(queue_attribute(guest, "write_zeroes_max_bytes")) > 0
            if program is Program.VHOSTBLK:
                # QEMU's daemon (7.2) announces no cache until the guest turns it on.
                assert queue_attribute(guest, "write_cache") == "write back"
            guest.run(
                f"dd if=/dev/urandom of=/dev/vda bs={block_size} seek=5 count=1 conv=fsync; "
                f"dd if=/dev/vda of=/run/x bs={block_size} skip=5 count=1 && [ -s /run/x ]"
            )
            guest.power_off()


def test_the_guest_turns_the_write_cache_off_and_on(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    with serve(program, Export(disk), directory):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            for cache in ("write through", "write back"):
                guest.run(f"echo '{cache}' > /sys/block/vda/cache_type")
                assert guest.run("cat /sys/block/vda/cache_type") == cache
                assert queue_attribute(guest, "write_cache") == cache
                guest.run(f"echo '{cache}' | dd of=/dev/vda bs=512 conv=sync,fsync 2> /dev/null")
                assert image.read(disk, 0, len(cache)) == cache.encode()
            guest.power_off()


@pytest.mark.usefixtures("vhostblk_only")
def test_the_guest_sees_serial_and_queue_size(directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    export = Export(disk, extra="x-vhostblk-serial=DISK-0042,x-vhostblk-queue-size=64")
    attached = VhostUserDisk(directory / "v.sock", queue_size=64)
    with serve(Program.VHOSTBLK, export, directory), Machine(directory, attached) as guest:
        assert guest.run("cat /sys/block/vda/serial") == "DISK-0042"
        # Without a scheduler, which has a depth of its own.
        guest.run("echo none > /sys/block/vda/queue/scheduler")
        assert queue_attribute(guest, "nr_requests") == "64"
        guest.run("dd if=/dev/urandom of=/dev/vda bs=64k count=64 conv=fsync 2> /dev/null")
        guest.power_off()
