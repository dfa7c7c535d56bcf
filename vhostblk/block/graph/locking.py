# SPDX-License-Identifier: Apache-2.0
"""Image locks: permissions as locks on the image file, so that processes exclude each other.

The bytes and their meaning are QEMU's. A process that takes permission i (the bit's number in
`Perm`) holds a shared lock on byte 100 + i. A process that doesn't share it holds one on byte 200 +
i. A permission can be taken while no other process locks its "unshared" byte, and unshared while no
other process locks its "taken" byte. These shared locks never block one another. Each process first
sets its own locks and then looks for those of others. So if two processes start at the same time,
at least one sees the other.

They are open file description locks (fcntl(2), F_OFD_SETLK). They belong to the open file, not to
the process, and the kernel releases them with it, also after `kill -9`.
"""

from __future__ import annotations

import fcntl
import os
import struct

from vhostblk.block.errors import BlockError, ImageLockedError
from vhostblk.block.graph.permissions import PERM_NAMES, Perm
from vhostblk.errors import errors_as
from vhostblk.schema.common import OnOffAuto

PERM_BASE = 100
UNSHARED_BASE = 200

#: `struct flock` on 64-bit Linux: type, whence, start, length, pid (0 for OFD locks).
_FLOCK = struct.Struct("@hhqqi4x")


def ofd_locks_available() -> bool:
    """Return whether the kernel has open file description locks."""
    return hasattr(fcntl, "F_OFD_SETLK")


def locking_wanted(option: OnOffAuto) -> bool:
    """Return whether to use locks, given the option `locking`; raises BlockError."""
    if option is OnOffAuto.OFF:
        return False
    if ofd_locks_available():
        return True
    if option is OnOffAuto.ON:
        raise BlockError("locking=on: open file description locks are not available on this system")
    return False


def lock_bytes(perm: Perm, shared: Perm) -> frozenset[int]:
    """Return the lock bytes for taking `perm` and sharing `shared`."""
    return frozenset(
        base + flag.bit_length() - 1
        for base, flags in ((PERM_BASE, perm), (UNSHARED_BASE, Perm.ALL & ~shared))
        for flag in PERM_NAMES
        if flag & flags
    )


class LockGuard:
    """Locks on a separate open file, held while an image moves from one process to another.

    The process that closes the image first makes the guard. Both processes ignore its locks. The
    locks are released when both have closed it.
    """

    def __init__(self, fd: int, locked: frozenset[int]) -> None:
        """Take over `fd`, which has locks on the bytes `locked`."""
        self.fd = fd
        self.locked = locked
        info = os.fstat(fd)
        self._key = (info.st_dev, info.st_ino)

    def trust(self) -> None:
        """Ignore this guard's locks in this process, until it is closed."""
        _guards[self._key] = self

    def close(self) -> None:
        """Close the guard."""
        if _guards.get(self._key) is self:
            del _guards[self._key]
        os.close(self.fd)


#: By device and inode.
_guards: dict[tuple[int, int], LockGuard] = {}


class ImageLock:
    """The locks that one open file holds; `path` is for messages."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._held: frozenset[int] = frozenset()

    def acquire(self, perm: Perm, shared: Perm) -> None:
        """Change the locks held. On ImageLockedError nothing has changed."""
        wanted = lock_bytes(perm, shared)
        before = self._held
        try:
            for byte in sorted(wanted - before):
                self._set(byte, fcntl.F_RDLCK)
            self._held = before | wanted
            self._check(wanted - before)
        except BlockError:
            self._release(wanted - before)
            raise
        self._release(before - wanted)

    def transfer(self, new_fd: int) -> None:
        """Move the locks to another open file of the same image.

        Both files hold the locks for a moment, so that no other process can take them.
        """
        old = ImageLock(self._fd, self._path)
        old._held = self._held
        self._fd = new_fd
        try:
            for byte in sorted(self._held):
                self._set(byte, fcntl.F_RDLCK)
        except BlockError:
            self._fd = old._fd
            raise
        old._release(old._held)

    def make_guard(self) -> LockGuard:
        """Return a guard with the same locks on another file; raises OSError or BlockError."""
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            held = ImageLock(fd, self._path)
            for byte in sorted(self._held):
                held._set(byte, fcntl.F_RDLCK)
            return LockGuard(fd, self._held)
        except BaseException:
            os.close(fd)
            raise

    def set_fd(self, fd: int) -> None:
        """Note the open file's new descriptor number."""
        self._fd = fd

    def _check(self, wanted: frozenset[int]) -> None:
        """Raise ImageLockedError if others hold locks that conflict with ours."""
        for flag, name in PERM_NAMES.items():
            bit = flag.bit_length() - 1
            if PERM_BASE + bit in wanted and self._held_by_other(UNSHARED_BASE + bit):
                raise self._conflict(f'"{name}"')
            if UNSHARED_BASE + bit in wanted and self._held_by_other(PERM_BASE + bit):
                raise self._conflict(f'shared "{name}"')

    def _conflict(self, what: str) -> ImageLockedError:
        return ImageLockedError(
            f"Failed to get {what} lock. Is another process using the image [{self._path}]?"
        )

    def _set(self, byte: int, lock_type: int) -> None:
        request = _FLOCK.pack(lock_type, os.SEEK_SET, byte, 1, 0)
        what = f"Failed to lock byte {byte} of '{self._path}'"
        with errors_as(BlockError, what, file=self._path):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)

    def _release(self, unwanted: frozenset[int]) -> None:
        for byte in unwanted:
            request = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
            except OSError:
                continue  # an extra lock only excludes more than needed, which is safe
        self._held -= unwanted

    def _held_by_other(self, byte: int) -> bool:
        """Return whether another open file has a lock that conflicts with an exclusive lock here.

        The locks of a guard don't count: they are released for the query. Our own locks, set
        before, keep other processes out meanwhile.
        """
        if not self._locked_by_other(byte):
            return False
        info = os.fstat(self._fd)
        guard = _guards.get((info.st_dev, info.st_ino)) if _guards else None
        if guard is None or byte not in guard.locked:
            return True
        lifted = ImageLock(guard.fd, self._path)
        lifted._release(frozenset({byte}))
        try:
            return self._locked_by_other(byte)
        finally:
            lifted._set(byte, fcntl.F_RDLCK)

    def _locked_by_other(self, byte: int) -> bool:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        what = f"Failed to query the lock on byte {byte} of '{self._path}'"
        with errors_as(BlockError, what, file=self._path):
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, request)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
