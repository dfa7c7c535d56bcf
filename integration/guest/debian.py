# SPDX-License-Identifier: Apache-2.0
"""A Debian system for guests (`system`), and packages that it does not have yet.

debootstrap makes the system, as root and with the network; apt fetches the packages. Both disks
are kept in `.cache/integration`. Guests need neither: the system's apt knows the packages' disk as
its only archive, to be mounted at `/packages`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from integration.guest.errors import HarnessError
from integration.guest.initramfs import CACHE
from integration.guest.system import Packages, System, make_ext4, run
from peers.debian import RootError, debootstrap, mirrors

SUITE = "bookworm"
ROOT_SIZE = "1G"
PACKAGES_SIZE = "64M"
PACKAGES = Packages(("less", "tree"), ("vim-tiny", "gawk"), ("nano", "file", "bc"))
_BUILDER = Path(__file__)
_SOURCE = "deb [trusted=yes] file:/packages ./\n"

_APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 --no-install-recommends"
_INSTALL = f"{_APT} install $packages"
_CHECK = """
test -z "$(dpkg --verify $packages)"
test "$(dpkg-query -W -f '${db:Status-Status}\\n' $packages | sort -u)" = installed
"""
# A package that was just being unpacked has to be unpacked again, which apt-get leaves to us.
_RECOVER = f"""
flags=$(dpkg-query -W -f '${{db:Status-Eflag}} ${{Package}}\\n')
for package in $(echo "$flags" | sed -n 's/^reinstreq //p')
do
    dpkg --force-depends -i /packages/"$package"_*.deb
done
dpkg --configure -a || true
{_APT} -f install
{_INSTALL}
test -z "$(dpkg --audit)"
"""


def debian_system() -> System:
    """Make the disks unless they are there; raises HarnessError."""
    digest = hashlib.sha256(_BUILDER.read_bytes()).hexdigest()
    place = CACHE / f"{SUITE}-{digest[:12]}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Several test processes may build at once: each has a directory of its own, one stays.
        with tempfile.TemporaryDirectory(prefix="debian-", dir=CACHE) as work:
            _build(Path(work))
            try:
                (Path(work) / "disks").rename(place)
            except OSError:
                if not place.exists():
                    raise
    disks = place / "root.qcow2", place / "packages.img"
    return System(*disks, PACKAGES, install=_INSTALL, check=_CHECK, recover=_RECOVER)


def _build(work: Path) -> None:
    system, archive, disks = work / "system", work / "packages", work / "disks"
    disks.mkdir()
    _bootstrap(system)
    run("chroot", system, "apt-get", "-q", "update")
    fetch = ("apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install")
    run("chroot", system, *fetch, *PACKAGES.all)
    inside = system / "packages"
    inside.mkdir()
    for package in (system / "var/cache/apt/archives").glob("*.deb"):
        package.rename(inside / package.name)
    (inside / "Packages").write_text(_index(inside))
    (system / "etc/apt/sources.list").write_text(_SOURCE)
    shutil.rmtree(system / "var/lib/apt/lists")
    run("chroot", system, "apt-get", "-q", "update")
    inside.rename(archive)
    inside.mkdir()  # the mount point
    make_ext4(archive, disks / "packages.img", PACKAGES_SIZE)
    make_ext4(system, work / "root.img", ROOT_SIZE)
    convert = ("qemu-img", "convert", "-c", "-O", "qcow2")
    run(*convert, work / "root.img", disks / "root.qcow2")


def _bootstrap(system: Path) -> None:
    """Install a minimal Debian system in a directory."""
    try:
        program = debootstrap()
    except RootError as error:
        raise HarnessError(f"no Debian system: {error}") from error
    if os.geteuid():
        raise HarnessError("no Debian system: debootstrap needs root to set packages up")
    run(program, "--variant=minbase", SUITE, system, mirrors()[0])
    shutil.rmtree(system / "var/cache/apt/archives", ignore_errors=True)


def _index(directory: Path) -> str:
    """Describe the packages of a directory, as apt reads it."""
    stanzas = []
    for package in sorted(directory.glob("*.deb")):
        fields = run("dpkg-deb", "-f", package).rstrip("\n")
        content = package.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        stanzas.append(
            f"{fields}\nFilename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n"
        )
    return "\n".join(stanzas)
