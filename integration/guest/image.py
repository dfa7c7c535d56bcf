# SPDX-License-Identifier: Apache-2.0
"""The disk image as seen from outside, without a guest and without privileges."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from integration.guest.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
#: Finds e2fsprogs for users whose path lacks it.
ENVIRONMENT = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


def create(path: Path, size: int) -> Path:
    """Make a sparse raw image."""
    with path.open("xb") as image:
        image.truncate(size)
    return path


def fill(path: Path, pattern: bytes) -> None:
    """Overwrite the whole image with a repeated pattern."""
    size = path.stat().st_size
    with path.open("r+b") as image:
        image.write((pattern * (size // len(pattern) + 1))[:size])


def allocated(path: Path) -> int:
    """Bytes of storage that the image takes on the host."""
    return path.stat().st_blocks * 512


@contextmanager
def written(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """At the end, wait until the image has been written to since the beginning."""
    before = path.stat().st_mtime_ns
    yield
    deadline = time.monotonic() + timeout
    while path.stat().st_mtime_ns == before:
        if time.monotonic() > deadline:
            raise HarnessError(f"nothing is written to {path}")
        time.sleep(0.01)


def read(path: Path, offset: int, length: int) -> bytes:
    """Bytes of the image."""
    with path.open("rb") as image:
        image.seek(offset)
        return image.read(length)


def sha256(path: Path) -> str:
    """Digest of the whole image."""
    with path.open("rb") as image:
        return hashlib.file_digest(image, "sha256").hexdigest()


def check_ext4(path: Path) -> None:
    """Let e2fsck judge the file system; a message is raised when it finds anything."""
    done = subprocess.run(
        ["e2fsck", "-fn", path], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if done.returncode:
        raise AssertionError(f"e2fsck -fn {path}: {done.stdout}{done.stderr}")


def recover_ext4(path: Path) -> None:
    """Replay the journal, as the next mount would after a crash."""
    done = subprocess.run(
        ["e2fsck", "-p", path], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    # 1 is "errors corrected": the journal was replayed.
    if done.returncode not in (0, 1):
        raise AssertionError(f"e2fsck -p {path}: {done.stdout}{done.stderr}")


def ext4_file(path: Path, name: str) -> bytes:
    """Content of a file in the image's ext4 file system."""
    done = subprocess.run(
        ["debugfs", "-R", f"cat {name}", path], capture_output=True, env=ENVIRONMENT, check=True
    )
    return done.stdout
