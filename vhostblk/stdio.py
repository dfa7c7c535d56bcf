# SPDX-License-Identifier: Apache-2.0
"""Opening of missing standard descriptors."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Open /dev/null in place of standard descriptors that the parent process has closed.

    Otherwise the next files that are opened get their numbers: messages would go to a disk image,
    and `--daemonize` would close the event loop. Call this before any file is opened.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `fd`
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, mode, closefd=False))
