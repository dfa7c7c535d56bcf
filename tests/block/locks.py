# SPDX-License-Identifier: Apache-2.0
"""Looks at image locks from outside: through the kernel's table, and with QEMU's own program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_qemu_io = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io missing")


def locked_bytes(path: Path) -> set[int]:
    """Bytes of a file that anyone has OFD read locks on, as the kernel tells."""
    inode = path.stat().st_ino
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1:4] == ["OFDLCK", "ADVISORY", "READ"] and fields[5].endswith(f":{inode}"):
            found |= set(range(int(fields[6]), int(fields[7]) + 1))
    return found


def qemu_io(image: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *arguments, "-c", "read 0 1", str(image)],
        capture_output=True,
        text=True,
        timeout=20,
        # A sanitizer that is preloaded into the tests does not know QEMU's coroutines.
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
    )
    return done.stdout + done.stderr
