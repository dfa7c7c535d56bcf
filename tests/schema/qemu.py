# SPDX-License-Identifier: Apache-2.0
"""What the real qemu-storage-daemon says to an option."""

from __future__ import annotations

import shutil
import subprocess

import pytest

BINARY = shutil.which("qemu-storage-daemon")

needs_qemu = pytest.mark.skipif(BINARY is None, reason="no qemu-storage-daemon here")

#: Refused at once, so that the daemon ends where the option under test was accepted.
_LAST = ["--object", "marker"]


def message(option: str, value: str, *before: str) -> str | None:
    """Return the daemon's message on `--option value`; None: accepted."""
    assert BINARY is not None
    done = subprocess.run(
        [BINARY, *before, f"--{option}", value, *_LAST],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    for line in done.stderr.splitlines():
        prefix = f"qemu-storage-daemon: --{option} {value}: "
        if line.startswith(prefix):
            return line.removeprefix(prefix)
        if line.startswith("qemu-storage-daemon: --object marker: "):
            return None
    raise AssertionError(done.stderr)
