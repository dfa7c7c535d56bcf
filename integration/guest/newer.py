# SPDX-License-Identifier: Apache-2.0
"""Guests with a kernel and a QEMU later than Debian 12's.

Zoned disks need them. Linux's virtio-blk supports zones since 6.3. QEMU's vhost-user-blk hides the
feature from guests, even in 11.1. But QEMU then has a device that passes on all features that a
back-end offers, and only needs the type of the device: `vhost-user-test-device-pci`.

Both come from a later Debian release (`peers.debian`).
"""

from __future__ import annotations

from integration.guest.kernel import Kernel
from integration.guest.machine import Machine, VhostUserDisk
from peers.debian import FORKY, program

QEMU = "qemu-system-x86_64"
_VIRTIO_ID_BLOCK = 2


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
        words = list(program(QEMU, FORKY.path))
        for folder in ("qemu", "seabios"):
            words += ["-L", str(FORKY.path / "usr/share" / folder)]
        return words

    def kernel(self) -> Kernel:
        """Give the kernel that the guest boots."""
        image = sorted((FORKY.path / "usr/lib/modules").glob("*-cloud-amd64/vmlinuz"))[-1]
        return Kernel(image, image.parent, needed=self.modules)
