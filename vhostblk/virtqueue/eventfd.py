# SPDX-License-Identifier: Apache-2.0
"""Event descriptors that a front-end hands over, trusted with nothing.

What is not an eventfd is refused: a pipe or a file could block, grow, or end.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress
from pathlib import Path

from vhostblk.engine import load
from vhostblk.virtqueue.errors import SetupError

_ONE = (1).to_bytes(8, "little")


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
    """Add one. A counter that is full stays so.

    The front-end may have made the descriptor blocking again, and have filled the counter. The
    engine has a way to signal it that never waits; without the engine the counter is looked at
    first, and a front-end that fills it just then makes us wait.
    """
    engine = load()
    if engine is not None:
        engine.lib.vb_notify(fd)
        return
    room = select.poll()
    room.register(fd, select.POLLOUT)
    if room.poll(0):
        with suppress(BlockingIOError):
            os.write(fd, _ONE)


def clear(fd: int) -> None:
    """Reset to zero, whether or not it was signalled."""
    try:
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        _clear_on_old_kernels(fd)


def _clear_on_old_kernels(fd: int) -> None:
    """Do without RWF_NOWAIT, which eventfds don't know before Linux 5.8."""
    readable = select.poll()
    readable.register(fd, select.POLLIN)
    if readable.poll(0):
        with suppress(BlockingIOError):
            os.read(fd, 8)
