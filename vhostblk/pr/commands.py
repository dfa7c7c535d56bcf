# SPDX-License-Identifier: Apache-2.0
"""One command on one descriptor: what kind of device it is, and who carries the command out."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING

from vhostblk.pr.multipath import is_multipath
from vhostblk.pr.sg import Sg
from vhostblk.pr.sg import ioctl as real_ioctl
from vhostblk.reservations import sense
from vhostblk.reservations.layout import PERSISTENT_RESERVE_OUT, SCSI_GENERIC_MAJOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.pr.multipath import Multipath
    from vhostblk.pr.sg import Ioctl
    from vhostblk.reservations.wire import Reply, Request


class Commands:
    """Carries out commands, in any number of threads; closes no descriptor."""

    def __init__(
        self,
        timeout: int,
        multipath: Multipath | None = None,
        *,
        lacking: str = "",
        warn: Callable[[str], object] = lambda text: None,
        ioctl: Ioctl = real_ioctl,
        is_map: Callable[[int], bool] = is_multipath,
    ) -> None:
        """`timeout`: milliseconds that a command may take; `warn` is told what an admin can mend.

        `is_map` says whether a block device is a multipath map, `lacking` why `multipath` is None.
        """
        self._timeout = timeout
        self._multipath = multipath
        self._lacking = lacking
        self._warn = warn
        self._ioctl = ioctl
        self._is_map = is_map
        self._local = threading.local()

    def execute(self, request: Request) -> Reply:
        """Carry out a command; whatever fails is in the reply."""
        try:
            return self._execute(request)
        except OSError:  # of a file system that can't say what the file is
            return sense.check_condition(sense.IO_ERROR)

    def _execute(self, request: Request) -> Reply:
        if request.cdb[0] == PERSISTENT_RESERVE_OUT:
            flags = fcntl.fcntl(request.fd, fcntl.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                return sense.check_condition(sense.INVALID_OPCODE)
        status = os.fstat(request.fd)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFBLK:
            if self._is_map(status.st_rdev):
                return self._reserve_map(request, status.st_rdev)
        elif kind != stat.S_IFCHR or os.major(status.st_rdev) != SCSI_GENERIC_MAJOR:
            # What SG_IO means to other files is none of our business.
            return sense.check_condition(sense.IO_ERROR)
        return self._sg().reserve(request.fd, request.cdb, request.parameters)

    def _reserve_map(self, request: Request, device: int) -> Reply:
        if fcntl.fcntl(request.fd, fcntl.F_GETFL) & os.O_PATH:
            # It is not opened, which the library, that opens maps by number, would not notice.
            return sense.check_condition(sense.IO_ERROR)
        if self._multipath is None:
            name = f"{os.major(device)}:{os.minor(device)}"
            self._warn(f"device {name} is a multipath map: {self._lacking}")
            return sense.check_condition(sense.INVALID_OPCODE)
        return self._multipath.reserve(request, self._sg())

    def _sg(self) -> Sg:
        """Return this thread's memory for SG_IO."""
        found: Sg | None = getattr(self._local, "sg", None)
        if found is None:
            found = self._local.sg = Sg(self._timeout, self._ioctl)
        return found
