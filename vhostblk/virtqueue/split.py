# SPDX-License-Identifier: Apache-2.0
"""The device side of a split virtqueue (VIRTIO 1.3, section 2.7).

Order of memory accesses, with the driver on another CPU:

- `avail.idx` is loaded with acquire; ring entries and descriptors are read after it.
- Used elements, status bytes and data are written before `used.idx` is stored with release.
- Storing `used.idx` and loading `used_event` (or `avail.flags`), and storing `avail_event` (or
  `used.flags`) and loading `avail.idx`, need a full fence between them (2.7.7.2, 2.7.10.1). Without
  it each side may miss the other's write, and the queue sleeps for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.virtqueue import layout
from vhostblk.virtqueue.barrier import fence, load_acquire_u16, store_release_u16
from vhostblk.virtqueue.errors import BrokenRingError, RingSetupError
from vhostblk.virtqueue.inflight import SplitInflight
from vhostblk.virtqueue.walker import walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.batch import RequestBatch
    from vhostblk.virtqueue.config import VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog


class SplitQueue:
    """One running split virtqueue. `next_avail` and `next_used` are free-running uint16 indices."""

    def __init__(
        self,
        config: VringConfig,
        memory: GuestMemory,
        *,
        event_idx: bool,
        inflight: InflightPart | None = None,
    ) -> None:
        """Record requests in flight in `inflight`, and begin with those in the record.

        Raises SetupError if a ring is not in guest memory or misaligned, or if the record of
        requests in flight is corrupt.
        """
        self.size = config.size
        self.next_avail = config.next_avail
        self._config = config
        self._event_idx = event_idx
        self._in_flight = np.zeros(config.size, np.bool_)
        self._marks = np.zeros(config.size, np.int64)
        self._map(memory)
        self._log: QueueLog | None = None
        # Only the ring has the used index of earlier back-ends.
        self.next_used = load_acquire_u16(self._used_addr + layout.RING_INDEX_OFFSET)
        self.inflight: SplitInflight | None = None
        #: Heads to be taken again, before any new ones.
        self.left = np.empty(0, np.uint16)
        if inflight is not None:
            self.inflight = SplitInflight(inflight, config.size, self.next_used)
            self.left = self.inflight.left
            # All heads that were taken are used, or in flight. A front-end that does not know where
            # the queue stopped only knows the used ones.
            self.next_avail = (self.next_used + len(self.left)) & 0xFFFF

    def _map(self, memory: GuestMemory) -> None:
        config, size = self._config, self.size
        desc = memory.translate_user(config.desc_addr, layout.desc_bytes(size))
        avail = memory.translate_user(config.avail_addr, layout.avail_bytes(size))
        used = memory.translate_user(config.used_addr, layout.used_bytes(size))
        if desc % 16 or avail % 2 or used % 4:
            raise RingSetupError(f"vring {config.index}: a ring is not aligned in host memory")
        self.memory = memory
        self._desc_addr, self._avail_addr, self._used_addr = desc, avail, used
        header = layout.RING_HEADER_SIZE
        self._avail_ring = memory.view(avail + header, 2 * size).view("<u2")
        self._used_ring = memory.view(used + header, layout.USED_ELEM.itemsize * size).view(
            layout.USED_ELEM
        )
        self._used_event_addr = avail + header + 2 * size
        self._event_offset = header + layout.USED_ELEM.itemsize * size
        self._avail_event_addr = used + self._event_offset

    @property
    def base(self) -> int:
        """The base for SET_VRING_BASE."""
        return self.next_avail

    def move(self, memory: GuestMemory) -> None:
        """Switch to a new memory table while no request is in flight.

        Raises SetupError if it does not have the ring; the old table then stays in use.
        """
        self._map(memory)

    def set_log(self, log: QueueLog | None) -> None:
        """Start or stop logging writes to the used ring; the whole ring is logged at once."""
        self._log = log
        if log is not None:
            log.mark_used(0, layout.used_bytes(self.size))

    def addresses(self) -> dict[str, int]:
        """Return the ring as the members of the engine's `struct vb_ring`."""
        return {
            "desc": self._desc_addr,
            "avail": self._avail_addr,
            "used": self._used_addr,
            "size": self.size,
            "next_avail": self.next_avail,
            "next_used": self.next_used,
            "event_idx": self._event_idx,
        }

    def pop(self, limit: int) -> RequestBatch | None:
        """Take up to `limit` chains: those left in flight, then those available; None: no more.

        Raises BrokenRingError on an index that jumped, a head out of range, or a head made
        available while its request is still in flight. Nothing is taken then.
        """
        if len(self.left):
            heads, self.left = self.left[:limit], self.left[limit:]
            self._in_flight[heads] = True
            return walk(heads, self._desc_addr, self.size, self.memory)
        index = load_acquire_u16(self._avail_addr + layout.RING_INDEX_OFFSET)
        available = (index - self.next_avail) & 0xFFFF
        if available == 0:
            return None
        if available > self.size:
            raise BrokenRingError(
                f"avail index {index} is {available} ahead in a queue of {self.size}"
            )
        count = min(available, limit)
        places = (self.next_avail + np.arange(count)) & (self.size - 1)
        heads = self._avail_ring.take(places)
        self._take(heads)
        self.next_avail = (self.next_avail + count) & 0xFFFF
        return walk(heads, self._desc_addr, self.size, self.memory)

    def _take(self, heads: NDArray[np.uint16]) -> None:
        if int(heads.max()) >= self.size:
            raise BrokenRingError(f"head {int(heads.max())} in a queue of {self.size}")
        order = np.arange(len(heads))
        self._marks[heads] = order
        if self._in_flight.take(heads).any() or (self._marks.take(heads) != order).any():
            raise BrokenRingError("a head was made available while in flight")
        self._in_flight[heads] = True
        if self.inflight is not None:
            self.inflight.take(heads)

    def push(self, heads: NDArray[np.uint16], lengths: NDArray[np.uint32]) -> bool:
        """Return chains to the driver, in this order; return whether it wants a notification.

        `lengths` are the bytes written to each chain's device-writable buffers.
        """
        count = len(heads)
        places = (self.next_used + np.arange(count)) & (self.size - 1)
        elements = np.empty(count, layout.USED_ELEM)
        elements["id"] = heads
        elements["len"] = lengths
        self._used_ring[places] = elements
        self._in_flight[heads] = False
        old = self.next_used
        self.next_used = (old + count) & 0xFFFF
        if self.inflight is not None:
            self.inflight.link(heads)
        if self._log is not None:
            self._log_elements(self._log, old, count)
        store_release_u16(self._used_addr + layout.RING_INDEX_OFFSET, self.next_used)
        if self._log is not None:
            self._log.mark_used(layout.RING_INDEX_OFFSET, 2)
            self._log.signal()
        if self.inflight is not None:
            self.inflight.strike_out(heads, self.next_used)
        fence()
        if self._event_idx:
            wanted = load_acquire_u16(self._used_event_addr)
            # 2.7.7.2: notify if this push has passed used_event.
            return (self.next_used - wanted - 1) & 0xFFFF < count
        return not load_acquire_u16(self._avail_addr) & layout.AVAIL_F_NO_INTERRUPT

    def _log_elements(self, log: QueueLog, old: int, count: int) -> None:
        first, size = old & (self.size - 1), layout.USED_ELEM.itemsize
        before_end = min(count, self.size - first)
        log.mark_used(layout.RING_HEADER_SIZE + size * first, size * before_end)
        log.mark_used(layout.RING_HEADER_SIZE, size * (count - before_end))

    def has_available(self) -> bool:
        """Return whether a chain is available."""
        if len(self.left):
            return True
        index = load_acquire_u16(self._avail_addr + layout.RING_INDEX_OFFSET)
        return index != self.next_avail

    def enable_notifications(self) -> None:
        """Ask for a kick at the next available chain; check `has_available()` afterwards."""
        if self._event_idx:
            store_release_u16(self._avail_event_addr, self.next_avail)
        else:
            store_release_u16(self._used_addr, 0)
        if self._log is not None:
            self._log.mark_used(self._event_offset if self._event_idx else 0, 2)
        fence()

    def disable_notifications(self) -> None:
        """Ask for no kicks; with EVENT_IDX the old event index has the same effect."""
        if not self._event_idx:
            store_release_u16(self._used_addr, layout.USED_F_NO_NOTIFY)
            if self._log is not None:
                self._log.mark_used(0, 2)
