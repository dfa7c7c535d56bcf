# SPDX-License-Identifier: Apache-2.0
"""Guests with a kernel and a QEMU later than Debian 12's.

Zoned disks take that. Linux's virtio-blk knows zones since 6.3; QEMU's vhost-user-blk keeps the
feature from guests, in 11.1 still. But QEMU has a device since then that passes on whatever a
back-end offers, and knows only which kind of device that is: `vhost-user-test-device-pci`.

`python -m integration.guest.newer` unpacks the packages of the next Debian into `.cache/forky`.
They are not set up there: nothing is ever run *in* it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.libblkio.debian import DEFAULT_MIRROR, LOADER, RootError, program
from integration.guest.kernel import Kernel
from integration.guest.machine import Machine, VhostUserDisk

CACHE = Path(__file__).parents[2] / ".cache"
ROOT = CACHE / "forky"
SUITE = "forky"
PACKAGES = ("qemu-system-x86", "linux-image-cloud-amd64")
QEMU = "qemu-system-x86_64"
_SCRIPT = "/usr/share/debootstrap/scripts/testing"
_VIRTIO_ID_BLOCK = 2


def has_root() -> bool:
    """Tell whether all is there."""
    return (ROOT / "usr/bin" / QEMU).exists() and bool(_kernels())


def make_root() -> None:
    """Get and unpack the packages (340 MB, a minute); raises RootError or CalledProcessError."""
    debootstrap = shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if debootstrap is None:
        raise RootError("debootstrap is not installed")
    packages, unfinished = CACHE / f"{SUITE}.packages", CACHE / f"{SUITE}.unfinished"
    for folder in (packages, unfinished, ROOT):
        shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True)
    options = ["--variant=minbase", "--download-only", f"--include={','.join(PACKAGES)}"]
    subprocess.run(
        [debootstrap, *options, SUITE, str(packages), DEFAULT_MIRROR, _SCRIPT], check=True
    )
    for package in sorted((packages / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(unfinished)], check=True)
    for modules in (unfinished / "usr/lib/modules").iterdir():
        command = ["/sbin/depmod", "-b", str(unfinished / "usr"), modules.name]
        subprocess.run(command, check=True)
    unfinished.rename(ROOT)
    shutil.rmtree(packages)


def _kernels() -> list[Path]:
    return sorted((ROOT / "usr/lib/modules").glob("*-cloud-amd64/vmlinuz"))


class PassedOnDisk(VhostUserDisk):
    """A disk about which QEMU knows only that it is one: the guest sees what the daemon offers."""

    def device_properties(self) -> dict[str, object]:
        """Properties of the device, as for `device_add`."""
        return {
            "driver": "vhost-user-test-device-pci",
            "id": self.identifier,
            "chardev": self.chardev,
            "virtio-id": _VIRTIO_ID_BLOCK,
            "num_vqs": self.queues,
            "config_size": 96,
        }


class NewerMachine(Machine):
    """A guest with that kernel, in that QEMU."""

    modules: tuple[str, ...] = ("virtio_pci", "virtio_blk")

    def emulator(self) -> list[str]:
        """Give the beginning of QEMU's command line."""
        words = list(program(QEMU, ROOT))
        for folder in ("qemu", "seabios"):
            words += ["-L", str(ROOT / "usr/share" / folder)]
        return words

    def kernel(self) -> Kernel:
        """Give the kernel that the guest boots."""
        image = _kernels()[-1]
        return Kernel(image, image.parent, needed=self.modules)


if __name__ == "__main__":
    if not has_root():
        make_root()
    print(f"{ROOT}: {'complete' if has_root() else f'no {QEMU} or no kernel, or no {LOADER}'}")
    sys.exit(not has_root())
