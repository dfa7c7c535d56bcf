# SPDX-License-Identifier: Apache-2.0
"""Runs inside the outer guest: has another initiator reserve the disk, then starts QEMU.

Arguments: the helper's socket, and the words that start QEMU; `DISK` in them is the disk's name.
"""

from __future__ import annotations

import os
import subprocess
import sys

from integration.pr_client import OTHER_KEY, Client, make_disks, parameters


def main() -> None:
    """Prepare the disk and wait for QEMU."""
    path, *words = sys.argv[1:]
    disk, other = make_disks()
    client = Client(path)
    fd = os.open(other, os.O_RDWR)
    assert client.ask(fd, 0x5F, 6, 0, parameters(0, OTHER_KEY))[0] == 0
    assert client.ask(fd, 0x5F, 1, 1, parameters(OTHER_KEY))[0] == 0
    os.close(fd)
    sys.exit(subprocess.run([word.replace("DISK", disk) for word in words], check=False).returncode)


if __name__ == "__main__":
    main()
