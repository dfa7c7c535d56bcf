# SPDX-License-Identifier: Apache-2.0
"""QEMU's programs that vhostblk is held against: the newest that there are."""

from __future__ import annotations

from peers import debian


def qemu_program(name: str) -> list[str]:
    """Return the beginning of a command line: QEMU 10 of the Debian 13 root, or the installed one.

    `make` makes the root (see `peers`); it has `qemu-storage-daemon`, `qemu-img` and `qemu-io`.
    """
    try:
        return list(debian.program(name))
    except debian.RootError:
        return [name]
