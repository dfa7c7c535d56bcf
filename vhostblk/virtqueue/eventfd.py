# SPDX-License-Identifier: Apache-2.0
"""Event descriptors that a front-end hands over, trusted with nothing.

What is not an eventfd is refused: a pipe or a file could block, grow, or end. The front-end can
take O_NONBLOCK away again, so nothing relies on it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vhostblk.virtqueue import nowait
from vhostblk.virtqueue.errors import SetupError


def adopt_eventfd(fd: int, purpose: str) -> int:
    """Check an eventfd that is ours from now on and make it non-blocking.

    Raises SetupError, with the descriptor closed, where it is none.
    """
    try:
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        target = "nothing"
    if target != "anon_inode:[eventfd]":
        os.close(fd)
        raise SetupError(f"the {purpose} descriptor is no eventfd but {target}")
    os.set_blocking(fd, False)
    return fd


def signal(fd: int) -> None:
    """Add one; a counter that is full is signalled already. Never waits."""
    nowait.signal(fd)


def clear(fd: int) -> None:
    """Reset to zero, whether or not it was signalled. Never waits."""
    nowait.discard(fd)
