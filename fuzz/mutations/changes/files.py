# SPDX-License-Identifier: Apache-2.0
"""Files of the host: the drivers `file` and `raw`, file I/O of the Python lane, image locks."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_POSIX = "vhostblk/block/drivers/posix.py"
_RAW = "vhostblk/block/drivers/raw.py"
_LOCKING = "vhostblk/block/graph/locking.py"

_FILE = ("tests/block/file",)
_LOCKS = ("tests/block/test_locking.py",)
_REOPEN = ("tests/block/test_reopen.py", "tests/block/test_locking.py")

MUTATIONS = (
    Mutation(
        "file-flush-error-forgotten",
        _POSIX,
        """
        - self._sync.error = -result
        + raise os_error(-result)
        """,
        "The flush after one that failed succeeds, though the kernel has dropped the data.",
        _FILE,
    ),
    Mutation(
        "file-flush-error-ignored",
        _POSIX,
        """
          result = await self._retry(lambda: self._aio.fdatasync(self.fd))
        - if result == 0:
        + if result <= 0:
              return
        """,
        "A flush that failed is acknowledged.",
        _FILE,
    ),
    Mutation(
        "file-flush-left-out",
        _POSIX,
        """
        - if self._fd_writable:
        + if self._fd_writable and not self.direct:
              await self._flushes.join()
        """,
        "With cache.direct, a flush doesn't cover the device's cache and the file's new length.",
        _FILE,
    ),
    Mutation(
        "file-flush-error-not-shared",
        _POSIX,
        """
        - sync=None if self.direct else self._sync,
        + sync=None,
        """,
        "A flush that failed on one lane is forgotten by the other one.",
        _FILE,
    ),
    Mutation(
        "file-flushes-at-the-same-time",
        _POSIX,
        """
        - await self._flushes.join()
        + await self._flush()
        """,
        "Of two flushes at a time, one succeeds though its data is lost: the other got the error.",
        _FILE,
    ),
    Mutation(
        "file-flush-does-not-wait-for-the-engine",
        _POSIX,
        """
        - await self._sync.begin()
          try:
              if not self._sync.error:
        """,
        "A flush succeeds though its data is lost: an iothread got the error at the same time.",
        _FILE,
    ),
    Mutation(
        "file-turn-is-kept",
        _POSIX,
        """
          finally:
        -     self._sync.end()
        +     pass
        """,
        "After one flush in Python, all flushes of the engine go to Python.",
        _FILE,
    ),
    Mutation(
        "reserved-storage-is-shared",
        "vhostblk/block/drivers/file.py",
        """
        - if not await self._try_mode(FALLOC_UNSHARE_RANGE, offset, length):
        + if not await self._try_mode(0, offset, length):
        """,
        "On a full disk, metadata in a reflinked copy can't be written.",
        ("tests/block/test_reserve.py",),
    ),
    Mutation(
        "file-short-write-is-whole",
        _POSIX,
        """
          done = await self._aio.pwritev(self.fd, iov, offset)
        - if done != iov.nbytes:
        + if done < 0:
              await self._continue_write(offset, iov, done)
        """,
        "A write that stopped halfway is acknowledged.",
        _FILE,
    ),
    Mutation(
        "file-rest-of-write-at-old-offset",
        _POSIX,
        """
        - result = await self._aio.pwritev(self.fd, rest, offset + position)
        + result = await self._aio.pwritev(self.fd, rest, offset)
        """,
        "The rest of a short write overwrites its beginning.",
        _FILE,
    ),
    Mutation(
        "file-full-is-no-error",
        _POSIX,
        """
          if result == 0:
        -     raise os_error(errno.ENOSPC)
        +     return
        """,
        "A write of which the kernel writes nothing is acknowledged.",
        _FILE,
    ),
    Mutation(
        "file-short-read-is-the-end",
        _POSIX,
        """
        - if result == 0 or position & (self.limits.request_alignment - 1):
        + if result >= 0:
              iov.slice(position, iov.nbytes).fill(0)  # past the end of the file
        """,
        "A read that the kernel does in two parts returns zeroes for the second one.",
        _FILE,
    ),
    Mutation(
        "file-zeroes-error-ignored",
        _POSIX,
        """
          if result < 0:
        -     raise os_error(-result)
        +     self._modes.discard(mode)
          return True
        """,
        "Zeroes that the file system could not make are acknowledged.",
        _FILE,
    ),
    Mutation(
        "file-zeroes-not-known-are-done",
        _POSIX,
        """
              self._modes.discard(mode)
        -     return False
        +     return True
          if result < 0:
        """,
        "The first zeroes on a file system that can't make them are acknowledged.",
        _FILE,
    ),
    Mutation(
        "file-zeroes-in-a-hole-only",
        _POSIX,
        """
          old_size = self._size
          await self.truncate(offset + length)
        - length = max(old_size - offset, 0)
        + length = 0
        """,
        "Zeroes across the end of a file leave the data before the end.",
        _FILE,
    ),
    Mutation(
        "file-extended-over-data",
        _POSIX,
        """
        - mode = FALLOC_ZERO_RANGE if offset < self._size else 0
        + mode = 0
        """,
        "Zeroes across the end of a file leave the data before the end.",
        _FILE,
    ),
    Mutation(
        "file-replaced-under-our-hands",
        _POSIX,
        """
          fd = self._open_file(writable=writable, direct=self.direct)
          try:
        -     self._check_same(fd)
              if self._lock is not None:
        """,
        "A node continues in another file that now has the same name.",
        _REOPEN,
    ),
    Mutation(
        "file-replaced-while-reopening",
        _POSIX,
        """
          fd = self._open_file(writable=writable, direct=options.cache.direct)
          try:
        -     self._check_same(fd)
        +     pass
          except BaseException:
        """,
        "A node continues in another file that now has the same name.",
        _REOPEN,
    ),
    Mutation(
        "file-unlocked-by-first-writer",
        _POSIX,
        """
          if self._lock is not None:
        -     self._lock.transfer(fd)
        +     pass
          os.dup2(fd, self.fd, inheritable=False)
          self._fd_writable = writable
        """,
        "A file that is opened again for writing isn't locked: another process may write it.",
        _REOPEN,
    ),
    Mutation(
        "file-unlocked-by-reopening",
        _POSIX,
        """
          try:
        -     self._lock.transfer(fd)
        +     pass
          except BlockError as error:  # the kernel has no memory for locks
        """,
        "A file that was reopened isn't locked: another process may write it.",
        _REOPEN,
    ),
    Mutation(
        "raw-window-has-no-end",
        _RAW,
        """
        - return self.length is None and self._file.node.grows_by_writing
        + return self._file.node.grows_by_writing
        """,
        "A format in a window of a file writes past the window's end.",
        ("tests/block/test_raw_window.py",),
    ),
    Mutation(
        "raw-window-of-no-size-is-the-file",
        _RAW,
        """
        - if self.is_window or self._file.node.take_debug_event is not None:
        + if self.length is not None or self._file.node.take_debug_event is not None:
        """,
        "A raw node with an offset is read and written elsewhere in the file.",
        ("tests/block/test_raw_window.py",),
    ),
    Mutation(
        "raw-zeroes-without-the-offset",
        _RAW,
        """
        - await self._file.pwrite_zeroes(self.offset + offset, length, flags)
        + await self._file.pwrite_zeroes(offset, length, flags)
        """,
        "Zeroes on a raw node with an offset hit data before it in the file.",
        ("tests/block/test_raw_window.py",),
    ),
    Mutation(
        "raw-discard-without-the-offset",
        _RAW,
        """
        - await self._file.pdiscard(self.offset + offset, length)
        + await self._file.pdiscard(offset, length)
        """,
        "A discard on a raw node with an offset hits data before it in the file.",
        ("tests/block/test_raw_window.py",),
    ),
    Mutation(
        "raw-window-may-be-cut-off",
        _RAW,
        """
          if self.is_window:
        -     shared &= ~Perm.RESIZE
        +     pass
          return perm, shared
        """,
        "The file of a window is shrunk below it.",
        ("tests/block/test_raw_window.py",),
    ),
    Mutation(
        "aio-memory-not-kept",
        "vhostblk/block/aio/uring.py",
        """
          self._waiting[slot] = completion
        - self._memory[slot] = memory
        """,
        "Memory is freed while the kernel writes it to the file.",
        ("tests/block/test_aio.py",),
    ),
    Mutation(
        "aio-flush-left-out",
        "vhostblk/engine/src/core/aio.c",
        """
        - io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        + io_uring_prep_nop(sqe);
        """,
        "A flush does nothing.",
        _FILE,
    ),
    Mutation(
        "aio-flush-left-out-on-threads",
        "vhostblk/block/aio/threads.py",
        """
        - os.fdatasync(fd)
          return 0
        """,
        "Where io_uring is forbidden, a flush does nothing.",
        _FILE,
    ),
    Mutation(
        "aio-error-ignored-on-threads",
        "vhostblk/block/aio/threads.py",
        """
        - result = -errno_of(error)
        + result = 0
        """,
        "Where io_uring is forbidden, a failed flush is acknowledged.",
        ("tests/block/test_aio.py",),
    ),
    Mutation(
        "aio-broken-ring-succeeds",
        "vhostblk/block/aio/uring.py",
        """
          for completion, *_ in backlog:
        -     self._complete(completion, self._broken)
        +     self._complete(completion, 0)
        """,
        "Flushes that wait for a broken io_uring are acknowledged.",
        ("tests/block/test_uring_broken.py",),
    ),
    Mutation(
        "lock-without-looking",
        _LOCKING,
        """
          self._held = before | wanted
        - self._check(wanted - before)
        """,
        "Two processes write one image.",
        _LOCKS,
    ),
    Mutation(
        "lock-does-not-keep-writers-out",
        _LOCKING,
        """
        - if UNSHARED_BASE + bit in wanted and self._held_by_other(PERM_BASE + bit):
        + if UNSHARED_BASE + bit in wanted and self._held_by_other(UNSHARED_BASE + bit):
        """,
        "An image is opened exclusively though another process writes it.",
        _LOCKS,
    ),
    Mutation(
        "lock-lost-between-two-files",
        _LOCKING,
        """
          old = ImageLock(self._fd, self._path)
          old._held = self._held
        + old._release(old._held)
          self._fd = new_fd
        """,
        "While a file is opened again, another process takes the lock.",
        _LOCKS,
    ),
    Mutation(
        "lock-failure-keeps-nothing",
        _LOCKING,
        """
          except BlockError:
        -     self._release(wanted - before)
        +     self._release(wanted)
              raise
          self._release(before - wanted)
        """,
        "When a permission is refused, the locks that were held before are lost.",
        _LOCKS,
    ),
    Mutation(
        "guard-without-locks",
        _LOCKING,
        """
          held = ImageLock(fd, self._path)
        - for byte in sorted(self._held):
        -     held._set(byte, fcntl.F_RDLCK)
          return LockGuard(fd, self._held)
        """,
        "While an image is handed over to another process, a third one opens it.",
        _LOCKS,
    ),
)
