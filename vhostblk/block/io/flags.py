# SPDX-License-Identifier: Apache-2.0
"""`WriteFlags`."""

from __future__ import annotations

from enum import IntFlag


class WriteFlags(IntFlag):
    """How a write is to be done (QEMU's BDRV_REQ_*)."""

    NONE = 0
    #: On stable storage before it completes.
    FUA = 1
    #: Zeroes may be made by deallocating.
    MAY_UNMAP = 2
    #: Fail with ENOTSUP rather than write zeroes byte by byte.
    NO_FALLBACK = 4
    #: Store it compressed; only drivers that have this among their `native_flags` can.
    WRITE_COMPRESSED = 8
    #: What is written reads the same already (copy-on-read): WRITE_UNCHANGED is permission enough.
    WRITE_UNCHANGED = 16
