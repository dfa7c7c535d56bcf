# SPDX-License-Identifier: Apache-2.0
"""The driver side of a packed virtqueue (VIRTIO 1.3, 2.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.frontend.barrier import fence
from tests.frontend.connection import make_eventfd
from tests.frontend.layout.virtqueue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    EVENT_BYTES,
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
    PACKED_DESC,
    PACKED_F_AVAIL,
    PACKED_F_USED,
    desc_bytes,
)
from tests.frontend.ring import DriverRing, RingFullError, Segment, Used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.frontend.memory import Memory

_OWNER = PACKED_F_AVAIL | PACKED_F_USED


class PackedDriverRing(DriverRing):
    """One packed virtqueue, from the driver's side, with the methods of `DriverRing`.

    A place is an index in the first lap (wrap counter 1), or the index plus the size in the second.
    """

    def __init__(
        self, memory: Memory, size: int, *, event_idx: bool = False, start: int = 0
    ) -> None:
        """Create the ring; `start` is the first place of both sides, in any lap."""
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.desc_addr = memory.allocate(desc_bytes(size), 16)
        self.avail_addr = memory.allocate(EVENT_BYTES, 4)
        self.used_addr = memory.allocate(EVENT_BYTES, 4)
        self.desc = memory.view(self.desc_addr, desc_bytes(size)).view(PACKED_DESC)
        self.driver_event = memory.view(self.avail_addr, EVENT_BYTES).view("<u2")
        self.device_event = memory.view(self.used_addr, EVENT_BYTES).view("<u2")
        self.next_avail = self.last_used = self._published = start % (2 * size)
        lap = self.last_used // size
        used = np.where(np.arange(size) < self.last_used % size, 1 - lap, lap)
        self.desc["flags"] = used * _OWNER
        self._heads: list[tuple[int, int]] = []
        self._free_ids = list(range(size - 1, -1, -1))
        self._lengths: dict[int, int] = {}
        self._free_count = size
        self._indirect_tables: dict[int, int] = {}
        self.kick_fd = make_eventfd()
        self.call_fd = make_eventfd()
        self.kicks = 0
        self._start = self.base

    @property
    def base(self) -> int:
        return self._encode(self.last_used) * 0x10001

    @property
    def known_base(self) -> int:
        """The base that QEMU sends after a crash: that of the start, as it can't read another."""
        return self._start

    @property
    def in_flight(self) -> int:
        return len(self._lengths)

    @property
    def free(self) -> int:
        return self._free_count

    def _encode(self, place: int) -> int:
        return place % self.size | (place < self.size) << 15

    def _decode(self, number: int) -> int:
        return (number & 0x7FFF) + (0 if number >> 15 else self.size)

    # Making buffers available

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Add a chain, which the device does not see before `publish`; return its buffer id."""
        needed = 1 if indirect else len(segments)
        if self._free_count < needed:
            raise RingFullError(f"{needed} descriptors wanted, {self._free_count} free")
        number = self._free_ids.pop()
        rows = [(s.addr, s.length, DESC_F_WRITE * s.writable) for s in segments]
        if indirect:
            table = self._indirect_table(number, len(rows))
            entries = self.memory.view(table, desc_bytes(len(rows))).view(PACKED_DESC)
            for place, (addr, length, flags) in enumerate(rows):
                entries[place] = (addr, length, 0, flags)
            rows = [(table, desc_bytes(len(rows)), DESC_F_INDIRECT)]
        self.put(number, rows)
        self._lengths[number] = needed
        self._free_count -= needed
        return number

    def put(self, number: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """Add descriptors of (address, length, flags) as one chain, valid or not.

        NEXT is set where needed. The device does not see them before `publish`.
        """
        for position, (addr, length, flags) in enumerate(rows):
            owner = PACKED_F_AVAIL if self.next_avail < self.size else PACKED_F_USED
            more = DESC_F_NEXT if position < len(rows) - 1 else 0
            index = self.next_avail % self.size
            self.desc["addr"][index] = addr
            self.desc["len"][index] = length
            self.desc["id"][index] = number
            if position:
                self.desc["flags"][index] = flags | more | owner
            else:
                self._heads.append((index, flags | more | owner))
            self.next_avail = (self.next_avail + 1) % (2 * self.size)

    def make_available(self, head: int) -> None:
        """Add an empty buffer with an id, valid or not; `publish` shows it to the device."""
        self.put(head, [(0, 0, 0)])

    def publish(self) -> bool:
        old = self._published
        if not self._heads:
            return False
        fence()  # the rest of the chains is stored before the flags of their heads
        for index, flags in self._heads:
            self.desc["flags"][index] = flags
        self._heads = []
        self._published = self.next_avail
        fence()  # the flags are stored before the event suppression is loaded
        return self._wants_notification(old)

    def _wants_notification(self, old: int) -> bool:
        place, flags = self.device_event.tolist()
        if flags == EVENT_DESC and self.event_idx:
            passed = (self.next_avail - self._decode(place) - 1) % (2 * self.size)
            return bool(passed < (self.next_avail - old) % (2 * self.size))
        return bool(flags != EVENT_DISABLE)

    # Taking used buffers

    def has_used(self) -> bool:
        wanted = _OWNER if self.last_used < self.size else 0
        flags = int(self.desc["flags"][self.last_used % self.size])
        return bool(self._lengths) and flags & _OWNER == wanted

    def poll(self) -> list[Used]:
        done = []
        while self.has_used():
            fence()
            element = self.desc[self.last_used % self.size]
            used = Used(int(element["id"]), int(element["len"]))
            length = self._lengths.pop(used.head)
            self._free_ids.append(used.head)
            self._free_count += length
            self.last_used = (self.last_used + length) % (2 * self.size)
            done.append(used)
        return done

    def arm(self) -> None:
        if self.event_idx:
            self.driver_event[0] = self._encode(self.last_used)
            self.driver_event[1] = EVENT_DESC
        else:
            self.driver_event[1] = EVENT_ENABLE
        fence()

    def suppress_interrupts(self) -> None:
        self.driver_event[1] = EVENT_DISABLE
