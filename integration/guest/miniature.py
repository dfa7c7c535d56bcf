# SPDX-License-Identifier: Apache-2.0
"""The smallest system with packages: busybox, and Debian packages made of random files.

It needs neither root nor the network, and a few seconds of a guest.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from integration.guest.initramfs import find_program
from integration.guest.system import Packages, System, make_ext4, run

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = Packages(
    ("early0", "early1"),
    tuple(f"meanwhile{number}" for number in range(6)),
    tuple(f"late{number}" for number in range(4)),
)
FILES = 8
LONGEST = 512 << 10

_INSTALL = """
for package in $packages; do
    dpkg -i /packages/$package.deb
    sync
done
"""
_CHECK = """
for package in $packages; do
    echo "$package"
    dpkg -l | grep "^ii  $package "
    cd /usr/share/$package
    md5sum -c files.md5
done
"""
_DIRECTORIES = ("bin", "dev", "mnt", "packages", "proc", "run", "sys", "tmp", "var/lib/dpkg/info")


def miniature_system(directory: Path) -> System:
    """Make the disks in a directory; raises HarnessError."""
    tree, archive = directory / "tree", directory / "archive"
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    (tree / "var/lib/dpkg/status").touch()
    busybox = find_program("busybox")
    (tree / "bin/busybox").write_bytes(busybox.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for applet in run(busybox, "--list").split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    archive.mkdir()
    rng = random.Random(1)
    for package in PACKAGES.all:
        _make_package(directory, package, rng)
    raw, root, packages = (directory / name for name in ("root.img", "root.qcow2", "archive.img"))
    make_ext4(archive, packages, "64M")
    make_ext4(tree, raw, "128M")
    run("qemu-img", "convert", "-c", "-O", "qcow2", raw, root)
    return System(
        root, packages, PACKAGES, install=_INSTALL, check=_CHECK, recover=_INSTALL + _CHECK
    )


def _make_package(directory: Path, name: str, rng: random.Random) -> None:
    tree = directory / name
    content = tree / "usr/share" / name
    content.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: files\n"
    )
    digests = ""
    for number in range(FILES):
        data = rng.randbytes(rng.randrange(LONGEST))
        (content / str(number)).write_bytes(data)
        digests += f"{hashlib.md5(data).hexdigest()}  {number}\n"
    (content / "files.md5").write_text(digests)
    package = directory / "archive" / f"{name}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, package)
