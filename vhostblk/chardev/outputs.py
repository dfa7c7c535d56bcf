# SPDX-License-Identifier: Apache-2.0
"""Opening the output files of character devices; files that a block node uses are refused."""

from __future__ import annotations

import os
import stat

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.storage import check_unused
from vhostblk.chardev.base import ChardevError
from vhostblk.errors import reason


def open_file(path: str, flags: int, failure: str = "Could not open") -> int:
    """Open a file without blocking; raises ChardevError.

    With `O_TRUNC`, a regular file is truncated after checking that no block node has it open.
    """
    try:
        fd = os.open(path, flags & ~os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if flags & (os.O_WRONLY | os.O_RDWR):
                check_unused(fd, path)
            if flags & os.O_TRUNC and stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
    except (OSError, ValueError, BlockError) as error:
        raise ChardevError(f"{failure} '{path}': {reason(error)}", file=path) from error
    return fd
