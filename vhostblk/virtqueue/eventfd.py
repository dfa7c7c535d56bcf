# SPDX-License-Identifier: Apache-2.0
"""Event descriptors of a front-end, which is not trusted.

Descriptors other than eventfds are refused: a pipe or a file could block, grow, or end. The
front-end can clear O_NONBLOCK at any time, so no code relies on it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vhostblk.virtqueue import nowait
from vhostblk.virtqueue.errors import SetupError


def adopt_eventfd(fd: int, purpose: str) -> int:
    """Check an eventfd, which the caller then owns, and make it non-blocking.

    Raises SetupError, after closing the descriptor, if it is not an eventfd.
    """
    try:
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        target = "nothing"
    if target != "anon_inode:[eventfd]":
        os.close(fd)
        raise SetupError(f"the {purpose} descriptor is not an eventfd but {target}")
    os.set_blocking(fd, False)
    return fd


def signal(fd: int) -> None:
    """Add one; a full counter is signalled already. Never waits."""
    nowait.signal(fd)


def clear(fd: int) -> None:
    """Reset to zero, whether or not it was signalled. Never waits."""
    nowait.discard(fd)
