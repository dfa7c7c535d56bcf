# SPDX-License-Identifier: Apache-2.0
"""Reading and signalling descriptors that a peer shares, without ever waiting.

O_NONBLOCK belongs to the open file, so the peer may take it away at any time. Reading has a flag of
its own, RWF_NOWAIT. Writing to an eventfd has none, and waits while the counter is full. But the
kernel signals eventfds by itself without waiting, when an operation of io_submit(2) completes: so
an operation that completes at once is submitted, a read of nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import threading
from functools import partial

from vhostblk.errors import os_error

_libc = ctypes.CDLL(None, use_errno=True)

#: The numbers of io_setup(2), io_destroy(2) and io_submit(2), by machine.
_SYSCALLS = {"x86_64": (206, 207, 209), "aarch64": (0, 1, 2), "riscv64": (0, 1, 2)}

_IOCB_CMD_PREAD = 0
_IOCB_FLAG_RESFD = 1
_RING_MAGIC = 0xA10A10A1


class _Iocb(ctypes.Structure):
    """`struct iocb` of a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class _Ring(ctypes.Structure):
    """The ring of completions, which the kernel maps at the address of the context."""

    _fields_ = (
        ("id", ctypes.c_uint32),
        ("entries", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("magic", ctypes.c_uint32),
    )


class _Signaller:
    """One thread's context of io_submit(2); raises OSError where there can be none."""

    def __init__(self) -> None:
        numbers = _SYSCALLS.get(platform.machine())
        if numbers is None:
            raise os_error(errno.ENOSYS)
        setup, destroy, submit = numbers
        context = ctypes.c_ulong(0)
        self._file = os.memfd_create("vhostblk-signals", os.MFD_CLOEXEC)
        # What ends this may have to work when the interpreter ends.
        self._ends = [partial(os.close, self._file)]
        if _libc.syscall(setup, 8, ctypes.byref(context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self._ends.append(partial(_libc.syscall, destroy, context))
        self._ring = _Ring.from_address(context.value)
        if self._ring.magic != _RING_MAGIC:
            raise os_error(errno.ENOSYS)
        self._iocb = _Iocb(opcode=_IOCB_CMD_PREAD, fd=self._file, flags=_IOCB_FLAG_RESFD)
        self._iocb.buf = ctypes.addressof(self._iocb)
        self._iocbs = ctypes.pointer(self._iocb)
        self._submit = _libc["syscall"]  # of its own, as it has types of its own
        self._submit.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
        self._arguments = (submit, context.value, 1, ctypes.addressof(self._iocbs))

    def signal(self, fd: int) -> bool:
        """Add one to an eventfd; False where that failed."""
        self._iocb.resfd = fd
        done = self._submit(*self._arguments)
        self._ring.head = self._ring.tail
        return bool(done == 1)

    def __del__(self) -> None:
        for end in reversed(getattr(self, "_ends", [])):
            end()


class _Threads(threading.local):
    """The signaller of each thread; None where there can be none."""

    def __init__(self) -> None:
        self.signaller: _Signaller | None = None
        try:
            self.signaller = _Signaller()
        except OSError:
            pass


_threads = _Threads()


def signal(fd: int) -> None:
    """Add one to an eventfd; a counter that is full is signalled already.

    Where io_submit(2) is missing, a peer that fills the counter at the right moment makes this
    wait.
    """
    signaller = _threads.signaller
    if signaller is not None and signaller.signal(fd):
        return
    if _is_ready(fd, select.POLLOUT):
        try:
            os.eventfd_write(fd, 1)
        except BlockingIOError:
            pass


def read(fd: int, count: int) -> bytes:
    """Return at most `count` bytes that are there; raises BlockingIOError where there are none.

    Eventfds know RWF_NOWAIT from Linux 5.8, pipes from Linux 6.5. Before, a peer that reads at the
    right moment makes this wait.
    """
    data = bytearray(count)
    try:
        return bytes(data[: os.preadv(fd, [data], -1, os.RWF_NOWAIT)])
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    if not _is_ready(fd, select.POLLIN):
        raise os_error(errno.EAGAIN)
    return os.read(fd, count)


_discarded = [bytearray(8)]


def discard(fd: int) -> None:
    """Reset an eventfd to zero, whether or not it was signalled."""
    try:
        os.preadv(fd, _discarded, -1, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if _is_ready(fd, select.POLLIN):
            os.read(fd, 8)


def _is_ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))
