# SPDX-License-Identifier: Apache-2.0
"""Creation of files for `blockdev-create`.

An existing file is truncated first, unless this process or another one uses it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.block.drivers.preallocation import resize
from vhostblk.block.errors import BlockError, ImageLockedError
from vhostblk.block.graph.locking import ImageLock, ofd_locks_available
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import check_unused
from vhostblk.errors import reason
from vhostblk.schema.base import UnsetType
from vhostblk.schema.common import PreallocMode

if TYPE_CHECKING:
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.pause import Pause
    from vhostblk.schema.drivers.file_create import BlockdevCreateOptionsFile

logger = logging.getLogger(__name__)

_UINT32_MAX = 0xFFFF_FFFF
_DEFAULT_EXTENT_SIZE_HINT = 1 << 20

# ioctl(2) requests, from <linux/fs.h>.
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_NOCOW = 0x0080_0000
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
#: `struct fsxattr`: flags, extent size, and members that stay unchanged.
_FSXATTR = struct.Struct("=II20s")
_XFLAG_EXTSIZE = 0x0000_0800


async def create(options: BlockdevCreateOptionsFile, _graph: Graph, pause: Pause) -> None:
    """Create a file; raises BlockError or OSError, and then removes it if it is new."""
    hint = options.extent_size_hint
    explicit = not isinstance(hint, UnsetType)
    extent_size = _DEFAULT_EXTENT_SIZE_HINT if isinstance(hint, UnsetType) else hint
    if extent_size > _UINT32_MAX:
        raise BlockError("Extent size hint is too large")
    path = options.filename
    fd, is_new = await asyncio.to_thread(_open, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BlockError(f"'file' driver requires '{path}' to be a regular file")
        _exclude_others(fd, path)
        await resize(fd, 0, PreallocMode.OFF, asyncio.to_thread)
        if options.nocow:
            _switch_cow_off(fd)
        _hint_extent_size(fd, extent_size, warn=explicit and extent_size > 0)
        await resize(fd, options.size, options.preallocation, asyncio.to_thread, pause)
    except BaseException as error:
        if is_new and not isinstance(error, ImageLockedError):  # else another process uses it
            _remove(path, fd)
        raise
    finally:
        os.close(fd)


def _exclude_others(fd: int, path: str) -> None:
    """Lock the file against all other users until it is closed; raises BlockError on a conflict.

    The permissions that QEMU checks are checked first, so that the message is QEMU's if QEMU would
    fail, too. QEMU allows readers of the file; we don't.
    """
    if ofd_locks_available():
        lock = ImageLock(fd, path)
        lock.acquire(Perm.WRITE | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
        lock.acquire(Perm.WRITE | Perm.RESIZE, Perm.NONE)
    check_unused(fd, path)


def _open(path: str) -> tuple[int, bool]:
    """Open a file for writing; return whether it was created."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            return os.open(path, flags | os.O_EXCL, 0o644), True
        except FileExistsError:
            return os.open(path, flags, 0o644), False
    except (OSError, ValueError) as error:
        raise BlockError(f"Could not create '{path}': {reason(error)}", file=path) from error


def _remove(path: str, fd: int) -> None:
    """Remove a file, if the name still refers to the open file."""
    try:
        ours, there = os.fstat(fd), os.lstat(path)
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            Path(path).unlink()
    except OSError as error:
        logger.warning("'%s' can't be removed: %s", path, reason(error))


def _switch_cow_off(fd: int) -> None:
    """Disable copy-on-write on btrfs; errors of other file systems are ignored."""
    try:
        raw = fcntl.ioctl(fd, _GETFLAGS, bytes(8))
        flags = int.from_bytes(raw[:4], "little") | _NOCOW
        fcntl.ioctl(fd, _SETFLAGS, flags.to_bytes(8, "little"))
    except OSError:
        return


def _hint_extent_size(fd: int, size: int, *, warn: bool) -> None:
    """Have XFS allocate in units of `size` bytes, against fragmentation."""
    try:
        flags, _, rest = _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
        fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags | _XFLAG_EXTSIZE, size, rest))
    except OSError as error:
        if warn:
            logger.warning("Failed to set extent size hint: %s", reason(error))
