# SPDX-License-Identifier: Apache-2.0
"""Handling of SIGBUS without the engine, if the owner of guest memory truncates it.

This is `engine/src/core/guard.c` in Python. Front-ends seldom seal their memory against shrinking
(QEMU seals a `memory-backend-memfd`, and can't seal the file of a `memory-backend-file`). A check
of the file's size before an access does not prevent a truncation after the check. So the signal is
handled: the page is replaced with a page of zeroes.

A Python function would not be a safe handler for most signals. It is safe here because the access
itself raises the signal. So the thread is inside a copy to or from guest memory, for example in
numpy, and the state of the interpreter is consistent. ctypes takes the GIL if the thread does not
hold it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc and musl on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc.sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_Action), ctypes.POINTER(_Action))
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)

_SA_SIGINFO = 4
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED

#: `siginfo_t`: the code (above 0 if the kernel has raised the signal), and the address.
_CODE_OFFSET, _ADDRESS_OFFSET = 8, 16

_ONE = (1).to_bytes(8, "little")


class Guard:
    """A guard of `length` bytes mapped at `start`; the first loss signals the eventfd `fd`.

    `page` is the page size of the mapping.
    """

    def __init__(self, start: int, length: int, page: int, fd: int) -> None:
        self._range = range(start, start + length)
        self._page = page
        self._fd = fd
        self._lost = False
        _install()
        _guards.append(self)

    def remove(self) -> None:
        """End the guard; call this before the memory is unmapped."""
        _guards.remove(self)

    def replace_page(self, address: int) -> bool:
        """Replace the page at `address` with zeroes, if it belongs to this guard."""
        if address not in self._range:
            return False
        start = address // self._page * self._page
        if _libc.mmap(start, self._page, _PROTECTION, _FLAGS, -1, 0) == _MAP_FAILED:
            return False
        if not self._lost:
            self._lost = True
            os.write(self._fd, _ONE)
        return True


_guards: list[Guard] = []
_former = _Action()
_installed = False


def _handle(_number: int, info: int, _context: int) -> None:
    """Replace the page that was accessed, or call the previous handler.

    Returning repeats the access, so after an error the signal must not come here again.
    """
    try:
        if ctypes.c_int.from_address(info + _CODE_OFFSET).value > 0:
            address = ctypes.c_uint64.from_address(info + _ADDRESS_OFFSET).value
            if any(guard.replace_page(address) for guard in _guards):
                return
            _libc.sigaction(signal.SIGBUS, _former, None)
            return
    except BaseException:
        _libc.sigaction(signal.SIGBUS, _Action(), None)
        return
    _libc.sigaction(signal.SIGBUS, _former, None)
    os.kill(os.getpid(), signal.SIGBUS)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)


def _install() -> None:
    global _installed
    if not _installed:
        action = _Action(handler=ctypes.cast(_handler, ctypes.c_void_p), flags=_SA_SIGINFO)
        if _libc.sigaction(signal.SIGBUS, action, _former):
            raise OSError(ctypes.get_errno(), "sigaction failed")
        _installed = True
