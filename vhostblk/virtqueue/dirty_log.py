# SPDX-License-Identifier: Apache-2.0
"""A migration's dirty log ("Migration"): a bitmap of written pages in memory of the front-end.

Bit n stands for the page of guest memory at n * 4096. `vhostblk.virtqueue.queue_log` sets the bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.virtqueue.errors import DirtyLogError
from vhostblk.virtqueue.mapping import Mapping

if TYPE_CHECKING:
    from vhostblk.virtqueue.config import LogDescription
    from vhostblk.virtqueue.mapping import LossSignal


#: Bytes of guest memory for each bit of the dirty log (VHOST_LOG_PAGE).
LOG_PAGE = 4096


class DirtyLog:
    """A front-end's log, mapped during the object's lifetime: `size` bytes at `address`.

    Raises SetupError if mapping fails; the caller keeps the descriptor.
    """

    def __init__(self, described: LogDescription, loss: LossSignal | None = None) -> None:
        if described.mmap_size == 0:
            raise DirtyLogError("dirty log of 0 bytes")
        self._mapping = Mapping(
            described.fd, described.mmap_offset, described.mmap_size, "dirty log", loss
        )
        self.address = self._mapping.address
        self.size = described.mmap_size

    def check(self, addr: int, length: int, what: str) -> None:
        """Raise DirtyLogError if the log does not cover a whole range of guest memory."""
        if addr + length > self.size * 8 * LOG_PAGE:
            raise DirtyLogError(
                f"dirty log of {self.size} bytes is too small for {what} at {addr:#x} "
                f"of {length:#x} bytes"
            )
