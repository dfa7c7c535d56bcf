# SPDX-License-Identifier: Apache-2.0
"""Reading files that hold secrets, and looking at who else may.

These functions block; what serves guests calls them on a thread.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import time

from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.errors import os_error, reason

logger = logging.getLogger(__name__)

#: The largest secret that is read; no key and no passphrase is anywhere near it.
MAX_SIZE = 1 << 20

#: Seconds in which whoever writes into a pipe has to be done.
PATIENCE = 10.0


def read_secret(path: str) -> SecretBytes:
    """Read a file, also a pipe, into memory that can be zeroed; raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a name with a null byte
        raise os_error(errno.EINVAL, str(error)) from error
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> SecretBytes:
    waits = not stat.S_ISREG(os.fstat(fd).st_mode)
    deadline = time.monotonic() + PATIENCE
    with SecretBytes(length=MAX_SIZE + 1) as buffer, buffer.view as view:
        length = 0
        while length < len(view):
            if waits:
                _wait_readable(fd, deadline)
            try:
                count = os.readv(fd, [view[length:]])
            except BlockingIOError:
                continue
            if count == 0:
                return SecretBytes(view[:length])
            length += count
    raise os_error(errno.EFBIG)


def _wait_readable(fd: int, deadline: float) -> None:
    """Wait for data or the end: a pipe that nobody has opened yet is not at its end."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise os_error(errno.ETIMEDOUT)


def read_failure(path: str, error: OSError) -> str:
    """Say why a file can't be read, in GLib's words, as QEMU does."""
    what = "Error reading" if error.errno in (errno.EISDIR, errno.EIO) else "Failed to open"
    return f"{what} file “{path}”: {reason(error)}"


def warn_if_open(path: str, *, secret: bool) -> None:
    """Log a warning where other users may read a secret file, or change any file that matters."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        return
    if secret and mode & stat.S_IROTH:
        logger.warning("warning: %s: other users can read this secret file", path)
    if mode & stat.S_IWOTH:
        logger.warning("warning: %s: other users can change this file", path)
