# SPDX-License-Identifier: Apache-2.0
"""System calls that have no wrapper in Python."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from vhostblk.errors import os_error
from vhostblk.sandbox.layout import ARCHITECTURES

if TYPE_CHECKING:
    from vhostblk.sandbox.layout import Architecture


class Kernel:
    """The running kernel; `architecture` is None if its system calls are unknown."""

    def __init__(self) -> None:
        self.architecture: Architecture | None = ARCHITECTURES.get(os.uname().machine)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long

    def call(self, name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
        """Make a system call; arguments are numbers, or memory to point to. Raises OSError."""
        number = self.architecture.numbers.get(name) if self.architecture else None
        if number is None:
            raise os_error(errno.ENOSYS)
        words = [
            ctypes.c_ulong(argument & 0xFFFFFFFFFFFFFFFF) if isinstance(argument, int) else argument
            for argument in arguments
        ]
        result: int = self._call(ctypes.c_long(number), *words)
        if result < 0:
            raise os_error(ctypes.get_errno())
        return result
