# SPDX-License-Identifier: Apache-2.0
"""Sparse copies to qcow2 images, and file systems there, compared with their source."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from benchmarks.guest_fio import GUEST_MEMORY, FioMachine
from integration.guest import image
from integration.guest.machine import VhostUserDisk
from integration.guest.server import Program, Server
from integration.qcow2.tools import check, qemu_img

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10
SIZE = 32 * image.MIB

#: Writes a stream, continues with gaps, and reads all back; at the queue depth of disk copies. The
#: position of the gaps in the clusters that the stream gets in advance varies.
_FIO = "fio --ioengine=libaio --iodepth=32 --direct=1 --bs=64k --filename=/dev/vdd --verify=crc32c"
GAPS = "\n".join(
    f"{_FIO} --name=stream --rw=write --offset={start}M --size=5M --do_verify=0 > /dev/null\n"
    f"{_FIO} --name=gaps --rw=write:{gap}k --offset={5 * 1024 + start * 1024 + shift}k --size=4M"
    " > /run/fio 2>&1 || { grep verify: /run/fio | head -n 3; exit 1; }"
    for start, gap, shift in ((0, 64, 0), (11, 64, 64), (22, 128, 0))
)

#: Sparse as `dd` sees it: blocks of zeroes are left out, the page cache writes the rest in bursts.
COPY = """
/sbin/dd if=/dev/vda of=/dev/vdb bs=64k conv=sparse,notrunc,fsync status=none
echo 3 > /proc/sys/vm/drop_caches
cmp /dev/vda /dev/vdb
"""

FILE_SYSTEM = """
mkfs.ext4 -q /dev/vdc
mount -o discard /dev/vdc /mnt
/sbin/dd if=/dev/vda of=/mnt/copy bs=4k count=6144 conv=sparse status=none
for number in $(seq 8); do
    /sbin/dd if=/dev/vda of=/mnt/file$number bs=64k skip=$number count=$((number * 4)) status=none
done
sync
rm /mnt/file2 /mnt/file5
/sbin/dd if=/dev/vda of=/mnt/file3 bs=4k seek=5 count=3 conv=notrunc status=none
sync
fstrim /mnt
/sbin/dd if=/dev/vda of=/mnt/last bs=64k count=32 conv=sparse status=none
umount /mnt
e2fsck -fn /dev/vdc
echo 3 > /proc/sys/vm/drop_caches
sha256sum < /dev/vdc
"""


class Guest(FioMachine):
    """A guest with fio, and the host's dd in `/sbin`, as busybox's dd can't make sparse files."""

    programs = ("dd",)


def make_source(path: Path) -> Path:
    """Write a sparse file: a stream, every other cluster, then data and holes of many lengths."""
    chance = random.Random(5)
    with path.open("xb") as file:
        file.write(chance.randbytes(6 * image.MIB))
        while file.tell() < 16 * image.MIB:
            file.write(chance.randbytes(64 * KIB))
            file.seek(64 * KIB, os.SEEK_CUR)
        while file.tell() < SIZE:
            file.seek(4 * KIB * chance.choice([16, 16, 32, 48, 5, 100]), os.SEEK_CUR)
            file.write(chance.randbytes(4 * KIB * chance.choice([16, 16, 16, 32, 1, 7, 80])))
        file.truncate(SIZE)
    return path


def content(path: Path, raw: Path) -> Path:
    """Check an image with QEMU, and let it read the content."""
    check(path)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    return raw


@pytest.mark.parametrize("lane", ["express", "python"])
@pytest.mark.usefixtures("vhostblk_only")
def test_copies_and_file_systems_are_what_they_were_made_of(lane: str, directory: Path) -> None:
    source = make_source(directory / "source")
    images = {"copy": "cluster_size=64k", "files": "extended_l2=on,cluster_size=32k"}
    images["gaps"] = "cluster_size=64k"
    arguments = ["--blockdev", f"file,node-name=source,filename={source},read-only=on"]
    nodes = {"source": "off"}
    for name, options in images.items():
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, directory / name, SIZE)
        node = f"qcow2,node-name={name},discard=unmap,file.driver=file,file.discard=unmap"
        arguments += ["--blockdev", f"{node},file.filename={directory / name}"]
        nodes[name] = "on"
    for name, writable in nodes.items():
        export = f"vhost-user-blk,id={name},node-name={name},writable={writable}"
        arguments += ["--export", f"{export},addr.type=unix,addr.path={directory}/{name}.sock"]
    server = Server(Program.VHOSTBLK, arguments, directory)
    server.environment["VHOSTBLK_LANE"] = lane
    disks = [VhostUserDisk(directory / f"{name}.sock", identifier=name) for name in nodes]
    with server, Guest(directory, *disks, memory=GUEST_MEMORY) as guest:
        guest.run(GAPS, "stream with gaps")
        guest.run(COPY, "sparse copy")
        shown = guest.run(FILE_SYSTEM, "file system").splitlines()[-1].split()[0]
        guest.power_off()
    check(directory / "gaps")
    assert image.sha256(content(directory / "copy", directory / "raw")) == image.sha256(source)
    files = content(directory / "files", directory / "raw")
    assert image.sha256(files) == shown
    image.check_ext4(files)
    taken = image.ext4_file(files, "copy")
    assert taken == image.read(source, 0, 24 * image.MIB)
