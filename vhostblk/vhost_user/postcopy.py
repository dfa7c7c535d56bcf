# SPDX-License-Identifier: Apache-2.0
"""Post-copy migration at the destination: memory is mapped before its content has arrived.

A thread that accesses a missing page waits until the front-end supplies it, which may take for
ever. The thread may be the event loop (which holds the GIL), an iothread or a worker of the kernel,
and the other guests that it serves would wait, too. So missing pages are never accessed: vrings
that the front-end starts before POSTCOPY_END are started at POSTCOPY_END. The guest's requests wait
until all memory has arrived.

Memory is registered with the userfaultfd nevertheless, as the specification demands. If a bug
caused an access, it would wait or fail, and not read zeroes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from vhostblk.errors import os_error
from vhostblk.vhost_user.codec import FdList
from vhostblk.vhost_user.errors import PostcopyError

_libc = ctypes.CDLL(None, use_errno=True)

#: The system call's number (userfaultfd(2)), by machine.
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1

# ioctl_userfaultfd(2); `struct uffdio_api`, `uffdio_register` and `uffdio_range`.
_API = struct.Struct("=QQQ")
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_REGISTER = struct.Struct("=QQQQ")
_UFFDIO_REGISTER = 0xC020AA00
_MODE_MISSING = 1
_RANGE = struct.Struct("=QQ")
_UFFDIO_UNREGISTER = 0x8010AA01


def _open() -> int:
    """Open a userfaultfd for accesses from user mode only; raises OSError.

    This needs no privilege. It is sufficient, because this process does not access the memory,
    neither directly nor through the kernel.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise os_error(errno.ENOSYS)
    fd: int = _libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if fd < 0:
        raise os_error(ctypes.get_errno())
    try:
        fcntl.ioctl(fd, _UFFDIO_API, _API.pack(_UFFD_API, 0, 0))
    except OSError:
        os.close(fd)
        raise
    return fd


def available() -> bool:
    """Return whether this process can open a userfaultfd."""
    try:
        os.close(_open())
    except OSError:
        return False
    return True


class Postcopy:
    """One session's post-copy migration, from POSTCOPY_ADVISE to POSTCOPY_END."""

    def __init__(self) -> None:
        self._fd: int | None = None
        #: Address and length of mappings, in whole pages.
        self._registered: list[tuple[int, int]] = []
        #: Kick descriptors of vrings that will start at the end, by index.
        self._deferred: dict[int, FdList] = {}
        #: Whether memory content is missing.
        self.listening = False

    def advise(self) -> int:
        """Open a userfaultfd; return a duplicate for the front-end. Raises OSError."""
        if self.listening:
            raise PostcopyError("a post-copy migration is under way")
        self.close()
        self._fd = _open()
        return os.dup(self._fd)

    def listen(self) -> None:
        """Register all memory that is mapped from now on; raises PostcopyError."""
        if self._fd is None:
            raise PostcopyError("POSTCOPY_ADVISE is missing")
        self.listening = True

    def register(self, address: int, length: int) -> None:
        """Register a mapping, given in whole pages; raises OSError."""
        assert self._fd is not None
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, _REGISTER.pack(address, length, _MODE_MISSING, 0))
        self._registered.append((address, length))

    def defer(self, index: int, kick: int | None) -> None:
        """Defer the start of a vring; this object owns the descriptor."""
        self.drop(index)
        self._deferred[index] = FdList(() if kick is None else (kick,))

    def drop(self, index: int) -> None:
        """Forget the deferred start of a vring, if any."""
        if index in self._deferred:
            self._deferred.pop(index).close()

    def end(self) -> dict[int, FdList]:
        """End the migration; return the deferred vrings' kick descriptors for the caller."""
        deferred, self._deferred = self._deferred, {}
        self._release()
        return deferred

    def _release(self) -> None:
        self.listening = False
        if self._fd is None:
            return
        # The front-end has a duplicate of the descriptor, so closing ours ends nothing.
        for mapped in self._registered:
            try:
                fcntl.ioctl(self._fd, _UFFDIO_UNREGISTER, _RANGE.pack(*mapped))
            except OSError:
                continue  # unmapped meanwhile
        self._registered = []
        os.close(self._fd)
        self._fd = None

    def close(self) -> None:
        """Cancel the migration."""
        for kick in self.end().values():
            kick.close()
