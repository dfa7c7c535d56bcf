# SPDX-License-Identifier: Apache-2.0
"""Guests on the drivers in `examples/`, installed as packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.server import Program, Server

pytestmark = pytest.mark.usefixtures("vhostblk_only")

ROOT = Path(__file__).parents[1]
EXAMPLES = ("function-disk", "directory-fat", "key-value")
MIB = 1 << 20


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the examples into a directory of their own."""
    target = tmp_path_factory.mktemp("packages")
    sources = tmp_path_factory.mktemp("sources")
    for name in EXAMPLES:  # building leaves things beside the sources
        subprocess.run(["cp", "-r", ROOT / "examples" / name, sources], check=True)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
    subprocess.run([*command, *(str(sources / name) for name in EXAMPLES)], check=True)
    return target


def serve(directory: Path, packages: Path, node: str, *, writable: bool = False) -> Server:
    export = f"type=vhost-user-blk,id=e,node-name=disk,writable={'on' if writable else 'off'}"
    address = f"addr.type=unix,addr.path={directory}/v.sock"
    path = os.pathsep.join([str(ROOT), str(packages)])
    return Server(
        Program.VHOSTBLK,
        ["--blockdev", f"{node},node-name=disk", "--export", f"{export},{address}"],
        directory,
        environment={"PYTHONPATH": path},
    )


def test_a_function_is_a_disk(directory: Path, packages: Path) -> None:
    size = 8 * MIB
    digest = hashlib.sha256()
    for number in range(1, size // 512):
        digest.update((b"sector %d\n" % number).ljust(512, b"."))
    with serve(directory, packages, f"function,size={size},read-only=on"):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            assert guest.run("cat /sys/block/vda/size /sys/block/vda/ro") == f"{size // 512}\n1"
            found = guest.run("tail -c +513 /dev/vda | sha256sum").split()[0]
            assert found == digest.hexdigest()
            guest.run("! dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync")
            guest.power_off()


def test_a_machine_boots_from_thirty_lines(directory: Path, packages: Path) -> None:
    serial = directory / "serial.log"
    message = "Hello from thirty lines of Python"
    source = (ROOT / "examples" / "function-disk" / "function_disk.py").read_text()
    assert len(source.splitlines()) <= 30
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "64M",
        "-nodefaults",
        "-display",
        "none",
    ]
    command += ["-machine", "pc,memory-backend=memory"]
    command += ["-object", "memory-backend-memfd,id=memory,size=64M,share=on"]
    command += ["-chardev", f"socket,id=disk,path={directory}/v.sock"]
    command += ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=0"]
    command += ["-chardev", "pipe,id=serial,path=" + str(directory / "serial")]
    os.mkfifo(directory / "serial.in")
    os.mkfifo(directory / "serial.out")
    command += ["-serial", "chardev:serial"]
    del serial
    with serve(directory, packages, "function,size=1M"):
        keep = os.open(directory / "serial.in", os.O_RDWR)
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            with (directory / "serial.out").open("rb") as output:
                assert output.read(len(message)).decode() == message
        finally:
            machine.kill()
            machine.wait()
            os.close(keep)


@pytest.mark.parametrize("fat_type", ["fat16", "fat32"])
def test_a_directory_is_a_file_system(directory: Path, packages: Path, fat_type: str) -> None:
    shown = directory / "shown"
    (shown / "sub directory" / "deeper").mkdir(parents=True)
    files = {
        "README.TXT": b"short\n",
        "a long name, with spaces.text": bytes(range(256)) * 4000,
        "sub directory/empty": b"",
        "sub directory/deeper/random.bin": os.urandom(300_000),
        "sub directory/deeper/größe.txt": b"not ASCII\n",
    }
    for number in range(200):
        files[f"sub directory/one of many files {number}"] = str(number).encode()
    for name, content in files.items():
        (shown / name).write_bytes(content)
    (shown / "link").symlink_to("/etc/passwd")
    node = f"directory-fat,directory={shown},fat-type={fat_type},read-only=on"
    with serve(directory, packages, node):
        with Machine(directory, VhostUserDisk(directory / "v.sock")) as guest:
            guest.run("mount -t vfat -o ro,utf8 /dev/vda /mnt")
            listing = guest.run("cd /mnt; find . -type f -exec sha256sum {} +")
            guest.run("umount /mnt")
            guest.power_off()
    found = {
        name[2:]: digest for digest, _, name in (s.partition("  ") for s in listing.splitlines())
    }
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_key_value_store_keeps_a_file_system(directory: Path, packages: Path) -> None:
    disk = VhostUserDisk(directory / "v.sock")
    node = f"key-value,filename={directory}/disk.db,size=32M,discard=unmap"
    with serve(directory, packages, node, writable=True):
        with Machine(directory, disk) as guest:
            guest.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")
            guest.run("dd if=/dev/urandom of=/mnt/data bs=1M count=4 2> /dev/null")
            digest = guest.run("sha256sum < /mnt/data")
            guest.run("umount /mnt")
            guest.reboot()
            guest.run("e2fsck -fn /dev/vda && mount /dev/vda /mnt")
            assert guest.run("sha256sum < /mnt/data") == digest
            guest.run("rm /mnt/data; sync; fstrim /mnt; umount /mnt")
            guest.power_off()
    # Opened again, without the size.
    with serve(directory, packages, f"key-value,filename={directory}/disk.db", writable=True):
        with Machine(directory, disk) as guest:
            guest.run(
                "e2fsck -fn /dev/vda && mount /dev/vda /mnt && [ ! -e /mnt/data ]; umount /mnt"
            )
            guest.power_off()
