# SPDX-License-Identifier: Apache-2.0
"""The alignment of O_DIRECT for an open file."""

from __future__ import annotations

import ctypes
import mmap
import os

from vhostblk.block import SECTOR

#: The alignment if none can be determined: sufficient for all disks in use.
SAFE_ALIGNMENT = 4096

# statx(2), from <linux/stat.h>.
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_MASK_OFFSET = 0
_DIO_OFFSET_ALIGN_OFFSET = 0x9C


def probe_alignment(fd: int) -> int:
    """Return the alignment of offsets and lengths, at least 512.

    The kernel (Linux 6.1 and later) reports it. Otherwise it is found by trying reads of several
    lengths. Such reads can succeed by accident in a hole or at the end of the file, so the result
    is used only if at least one read failed.
    """
    return _ask_statx(fd) or _try_reads(fd) or SAFE_ALIGNMENT


def _ask_statx(fd: int) -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "statx"):
        return 0
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return 0
    mask = int.from_bytes(answer.raw[_MASK_OFFSET : _MASK_OFFSET + 4], "little")
    if not mask & _STATX_DIOALIGN:
        return 0
    field = answer.raw[_DIO_OFFSET_ALIGN_OFFSET : _DIO_OFFSET_ALIGN_OFFSET + 4]
    align = int.from_bytes(field, "little")
    return max(align, SECTOR) if align else 0


def _try_reads(fd: int) -> int:
    with mmap.mmap(-1, 2 * SAFE_ALIGNMENT) as buffer, memoryview(buffer) as memory:
        if _can_read(fd, memory, 1):
            return 0  # the file system checks nothing here, so the result is unknown
        align = SECTOR
        while align < SAFE_ALIGNMENT and not _can_read(fd, memory, align):
            align *= 2
        return align


def _can_read(fd: int, memory: memoryview, length: int) -> bool:
    try:
        os.preadv(fd, [memory[:length]], 0)
    except OSError:
        return False
    return True
