# SPDX-License-Identifier: Apache-2.0
"""Keys in the kernel's key retention service (`keyctl(2)`)."""

from __future__ import annotations

import ctypes
import os

from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.errors import os_error

#: Reads the payload of a key.
KEYCTL_READ = 11

#: `uname -m`: the number of the system call.
_NUMBERS = {"x86_64": 250, "aarch64": 219}

_TRIES = 8


def read_key(serial: int) -> SecretBytes:
    """Return the payload of a key; raises OSError."""
    length = _read(serial, None)
    for _ in range(_TRIES):
        with SecretBytes(length=max(length, 1)) as buffer:
            length = _read(serial, buffer)
            if length <= len(buffer):
                return buffer.copy(length)
        # The key has grown in between.
    raise OSError(0, "it changes all the time")


def _read(serial: int, buffer: SecretBytes | None) -> int:
    """Read into a buffer; return the length of the payload, which may be more."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(0, "not available on this machine")
    arguments: list[object] = [None, ctypes.c_long(0)]
    if buffer is not None:
        view = buffer.view
        arguments = [(ctypes.c_char * len(view)).from_buffer(view), ctypes.c_long(len(view))]
    try:
        length = int(
            libc.syscall(
                ctypes.c_long(number),
                ctypes.c_long(KEYCTL_READ),
                ctypes.c_long(serial),
                *arguments,
                ctypes.c_long(0),
            )
        )
    finally:
        arguments.clear()
    if length < 0:
        raise os_error(ctypes.get_errno())
    return length
