# SPDX-License-Identifier: Apache-2.0
"""What one queue notes in a dirty log, and the noting itself.

A page is noted after it was written and before the driver is shown what was done. Other processes
write to the log, too, so setting a bit has to be atomic, which takes the compiled engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.engine import load
from vhostblk.virtqueue import nowait
from vhostblk.virtqueue.errors import DirtyLogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.dirty_log import DirtyLog
    from vhostblk.virtqueue.memory import GuestMemory


class QueueLog:
    """One queue's way to the log.

    With `data`, what requests write is noted; with `used_addr`, a guest address, what is written to
    the used ring is, as if the ring began there. `event_fd` is signalled when something was noted.
    Raises DirtyLogError without the engine.
    """

    def __init__(
        self, log: DirtyLog, *, data: bool, used_addr: int | None, event_fd: int | None = None
    ) -> None:
        engine = load()
        if engine is None:
            raise DirtyLogError("a dirty log needs the compiled engine")
        self._ffi, self._lib = engine
        self._log = log
        self.data = data
        self._used_addr = used_addr
        self._event_fd = event_fd
        #: The engine's `struct vb_dirty_log *`, valid while this lives.
        self.encoded: Any = self._ffi.new(
            "struct vb_dirty_log *",
            {
                "bits": log.address,
                "size": log.size,
                "used_addr": used_addr or 0,
                "event_fd": -1 if event_fd is None else event_fd,
                "data": data,
                "used": used_addr is not None,
            },
        )

    def mark(self, addrs: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
        """Note ranges of guest memory, by guest addresses."""
        addrs, lengths = np.ascontiguousarray(addrs), np.ascontiguousarray(lengths)
        self._lib.vb_dirty_log_mark_all(
            self.encoded,
            len(addrs),
            self._ffi.from_buffer("uint64_t *", addrs),
            self._ffi.from_buffer("uint64_t *", lengths),
        )

    def mark_host(
        self, memory: GuestMemory, hosts: NDArray[np.uint64], lengths: NDArray[np.uint64]
    ) -> None:
        """Note ranges by host addresses; each lies in one region."""
        if len(hosts):
            self.mark(memory.guest_addresses(hosts), lengths)

    @property
    def used(self) -> bool:
        """Tell whether what is written to the used ring is noted."""
        return self._used_addr is not None

    def mark_used(self, offset: int, length: int) -> None:
        """Note a write to the used ring, `offset` bytes from its beginning."""
        if self._used_addr is not None and length:
            addr = np.array([self._used_addr + offset], np.uint64)
            self.mark(addr, np.array([length], np.uint64))

    def signal(self) -> None:
        """Tell the front-end that something was noted."""
        if self._event_fd is not None:
            nowait.signal(self._event_fd)
