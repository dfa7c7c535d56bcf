# SPDX-License-Identifier: Apache-2.0
"""The listening socket: bound to a path, or handed over by systemd."""

from __future__ import annotations

import fcntl
import os

from vhostblk.errors import errors_as
from vhostblk.net.errors import ListenError
from vhostblk.net.listener import FdAddress, Listener, UnixAddress
from vhostblk.net.listener import listen as listen_at
from vhostblk.pr.errors import HelperError
from vhostblk.systemd import FIRST_FD, activated_count


def listen(path: str | None, default: str) -> Listener:
    """Listen at `path`, or the default, unless systemd hands a socket over; raises HelperError."""
    count = activated_count()
    if not count:
        with errors_as(HelperError, of=ListenError):
            return listen_at(UnixAddress(path or default))
    for fd in range(FIRST_FD, FIRST_FD + count):
        what = f"Socket activation failed: invalid file descriptor fd = {fd}"
        with errors_as(HelperError, what):
            fcntl.fcntl(fd, fcntl.F_GETFD)
    if path is not None:
        raise HelperError("Unix socket can't be set when using socket activation")
    if count > 1:
        raise HelperError("socket activation with LISTEN_FDS > 1 is not supported")
    with errors_as(HelperError, "Failed to use socket activation", of=ListenError):
        listener = listen_at(FdAddress(str(FIRST_FD)))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return listener
