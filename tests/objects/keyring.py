# SPDX-License-Identifier: Apache-2.0
"""Keys in the session keyring, which child processes inherit."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEYCTL_UNLINK, _SESSION_KEYRING = 9, -3
_ADD_KEY, _KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]


@contextmanager
def kernel_key(payload: bytes) -> Iterator[int]:
    """Have a key with this payload; yield its serial number."""
    libc = ctypes.CDLL(None, use_errno=True)
    serial = libc.syscall(
        *(ctypes.c_long(_ADD_KEY), b"user", b"vhostblk-test", payload),
        *(ctypes.c_size_t(len(payload)), ctypes.c_int(_SESSION_KEYRING)),
    )
    assert serial > 0, os.strerror(ctypes.get_errno())
    try:
        yield serial
    finally:
        unlink = ctypes.c_long(_KEYCTL_UNLINK), ctypes.c_long(serial)
        libc.syscall(ctypes.c_long(_KEYCTL), *unlink, ctypes.c_long(_SESSION_KEYRING))
