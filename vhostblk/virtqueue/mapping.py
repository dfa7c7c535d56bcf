# SPDX-License-Identifier: Apache-2.0
"""Mapping a front-end's memory files.

`mmap.mmap` is not used: it keeps a duplicate of the descriptor during the mapping's lifetime
(hundreds, with hundreds of memory slots), and unmaps a length that huge pages don't accept.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from vhostblk.engine import load
from vhostblk.errors import reason
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_MAP_FAILED = ctypes.c_void_p(-1).value
_MAX_OFFSET = 1 << 63
_MADV_DONTDUMP = 16


class LossSignal:
    """An eventfd that is signalled when mapped memory is lost; closed with the last reference."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Mapping:
    """Bytes [offset, offset + size) of a file, shared and writable, at `address`.

    It is unmapped with the last reference. The caller keeps the descriptor. Core dumps do not
    contain the mapping, because it is large and belongs to the guest.

    The file's owner can truncate it; accesses then cause SIGBUS. With `loss`, accesses get zeroes
    instead, and `loss` is signalled.
    """

    def __init__(
        self,
        fd: int,
        offset: int,
        size: int,
        what: str = "memory region",
        loss: LossSignal | None = None,
    ) -> None:
        """Map; raises SetupError if that fails, with `what` as the name of the memory."""
        info = os.fstat(fd)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISCHR(info.st_mode)):
            raise SetupError(f"{what}: the descriptor is not a memory file")
        if offset + size > _MAX_OFFSET:
            raise SetupError(f"{what}: offset {offset:#x} + size {size:#x} overflows")
        if stat.S_ISREG(info.st_mode) and offset + size > info.st_size:
            raise SetupError(
                f"{what}: offset {offset:#x} + size {size:#x} is past the end of its file "
                f"({info.st_size:#x} bytes)"
            )
        # The block size of a hugetlbfs file is its page size; other files are only rounded more.
        page = max(mmap.PAGESIZE, info.st_blksize if stat.S_ISREG(info.st_mode) else 0)
        self._start = offset // page * page
        self._length = -(-(offset + size) // page) * page - self._start
        address = _libc.mmap(
            None,
            self._length,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_SHARED | getattr(mmap, "MAP_NORESERVE", 0),
            fd,
            self._start,
        )
        if address == _MAP_FAILED:
            raise SetupError(f"{what}: mmap failed: {reason(ctypes.get_errno())}")
        _libc.madvise(address, self._length, _MADV_DONTDUMP)
        self._base: int | None = address
        self.address: int = address + (offset - self._start)
        #: Start and length of the mapping, in whole pages.
        self.pages = (address, self._length)
        self._loss = loss
        self._unguard = _nothing if loss is None else _guard(address, self._length, page, loss)

    def __del__(self) -> None:
        base = getattr(self, "_base", None)
        if base is not None:
            self._unguard()
            _libc.munmap(base, self._length)


def _nothing() -> None:
    pass


def _guard(address: int, length: int, page: int, loss: LossSignal) -> Callable[[], object]:
    """Handle SIGBUS in a mapping; return the function that ends this."""
    engine = load()
    if engine is not None:
        guard = engine.lib.vb_guard_add(address, length, page, loss.fd)
        return partial(engine.lib.vb_guard_remove, guard) if guard else _nothing
    from vhostblk.virtqueue.guard import Guard

    return Guard(address, length, page, loss.fd).remove
