# SPDX-License-Identifier: Apache-2.0
"""`WriteFlags`."""

from __future__ import annotations

from enum import IntFlag


class WriteFlags(IntFlag):
    """Flags of a write (QEMU's BDRV_REQ_*)."""

    NONE = 0
    #: The data is on stable storage when the write completes.
    FUA = 1
    #: Zeroes may be written by deallocating.
    MAY_UNMAP = 2
    #: Fail with ENOTSUP instead of writing zeroes as data.
    NO_FALLBACK = 4
    #: Store the data compressed. Only for drivers with this flag in `native_flags`.
    WRITE_COMPRESSED = 8
    #: The data doesn't change (copy-on-read), so the permission WRITE_UNCHANGED is sufficient.
    WRITE_UNCHANGED = 16
