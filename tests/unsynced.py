# SPDX-License-Identifier: Apache-2.0
"""Counting a file's bytes that are in the page cache only, where a crash would lose them.

The kernel counts the bytes of dirty pages that a task discards when it truncates a file
(`cancelled_write_bytes` in /proc/self/io). So truncating a file tells how much of it was not
written yet, whichever process has changed it. The file has to be on a disk, not on a tmpfs.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def unsynced_bytes(path: Path) -> int:
    """Return how many bytes of a file have not been written to the disk yet, and truncate it.

    Pages, or larger parts of the file, count as a whole. The kernel writes them by itself after
    some seconds. So a result of 0 may be wrong, but not a higher one.
    """
    before = _thrown_away()
    os.truncate(path, 0)
    return _thrown_away() - before


def _thrown_away() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.rpartition("cancelled_write_bytes:")[2])


@contextmanager
def directory_on_disk(preferred: Path) -> Iterator[Path]:
    """Yield a directory where `unsynced_bytes` works: the preferred one, or a temporary one."""
    if _works_in(preferred):
        yield preferred
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        assert _works_in(Path(name)), "no file system here writes to a disk"
        yield Path(name)


def _works_in(directory: Path) -> bool:
    path = directory / "probe"
    try:
        for _ in range(10):  # a busy kernel may write the pages before we count
            path.write_bytes(bytes(4096))
            if unsynced_bytes(path):
                return True
    finally:
        path.unlink()
    return False
