# SPDX-License-Identifier: Apache-2.0
"""Errors of guest memory, of rings and their set-up, and of chains in a ring.

`str(error)` is only the reason.
"""

from __future__ import annotations

from enum import IntEnum

from vhostblk.errors import VhostblkError


class SetupError(VhostblkError):
    """Memory, a ring or a descriptor from the driver's side is not usable."""


class RingSetupError(SetupError):
    """A ring's size, addresses or base are invalid."""


class InflightError(SetupError):
    """The memory for requests in flight is too small, or corrupt."""


class DirtyLogError(SetupError):
    """A migration's dirty log is too small."""


class BrokenRingError(VhostblkError):
    """The ring is inconsistent; nothing more can be taken from it."""


class ChainFault(IntEnum):
    """Reasons why a descriptor chain can't be a request (VIRTIO 1.3, 2.7.4 and 2.7.5)."""

    NONE = 0
    #: `next` names no descriptor of the table.
    NEXT_OUT_OF_RANGE = 1
    #: More descriptors than the queue (or the longest indirect table) has: a loop.
    TOO_LONG = 2
    #: An indirect table of length 0, not a multiple of 16, or too long.
    INDIRECT_LENGTH = 3
    #: INDIRECT inside an indirect table, or together with NEXT.
    INDIRECT_NESTED = 4
    #: An indirect table outside guest memory, or in more than one region.
    INDIRECT_UNMAPPED = 5
    #: A device-readable descriptor after a device-writable one.
    ORDER = 6
    #: A buffer outside guest memory.
    UNMAPPED = 7
