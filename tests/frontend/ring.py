# SPDX-License-Identifier: Apache-2.0
"""The driver side of a split virtqueue (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.frontend.barrier import fence
from tests.frontend.connection import make_eventfd
from tests.frontend.layout.virtqueue import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    RING_HEADER_SIZE,
    USED_ELEM,
    USED_F_NO_NOTIFY,
    avail_bytes,
    desc_bytes,
    used_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.frontend.connection import Connection
    from tests.frontend.memory import Memory


class Segment(NamedTuple):
    """One buffer of a chain; `writable` by the device."""

    addr: int
    length: int
    writable: bool = False


class Used(NamedTuple):
    """One element of the used ring."""

    head: int
    length: int


class RingFullError(Exception):
    """No descriptors are free."""


class CompletionTimeoutError(Exception):
    """The device did not use a buffer in time."""


class DriverRing:
    """One virtqueue, from the driver's side.

    `add` adds chains, `publish` shows them to the device, `kick` notifies it if it wants a
    notification, and `poll` takes used buffers. Not thread-safe.
    """

    def __init__(
        self, memory: Memory, size: int, *, event_idx: bool = False, start: int = 0
    ) -> None:
        """Create the ring in guest memory; `start` is the first index of both sides."""
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.desc_addr = memory.allocate(desc_bytes(size), 16)
        self.avail_addr = memory.allocate(avail_bytes(size), 2)
        self.used_addr = memory.allocate(used_bytes(size), 4)
        self.desc = memory.view(self.desc_addr, desc_bytes(size)).view(DESC)
        avail = memory.view(self.avail_addr, avail_bytes(size)).view("<u2")
        self.avail_flags, self.avail_idx = avail[0:1], avail[1:2]
        self.avail_ring, self.used_event = avail[2 : 2 + size], avail[2 + size :]
        used = memory.view(self.used_addr, used_bytes(size))
        header = used[:RING_HEADER_SIZE].view("<u2")
        self.used_flags, self.used_idx = header[0:1], header[1:2]
        elements_end = RING_HEADER_SIZE + size * USED_ELEM.itemsize
        self.used_ring = used[RING_HEADER_SIZE:elements_end].view(USED_ELEM)
        self.avail_event = used[elements_end:].view("<u2")
        self.avail_idx[0] = self.used_idx[0] = self.used_event[0] = start & 0xFFFF
        self.avail_event[0] = start & 0xFFFF
        #: Indices are not limited here; the rings have their low 16 bits.
        self.next_avail = start
        self._published = start
        self.last_used = start
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._indirect_tables: dict[int, int] = {}
        self.kick_fd = make_eventfd()
        self.call_fd = make_eventfd()
        self.kicks = 0

    def close(self) -> None:
        """Close the event descriptors."""
        os.close(self.kick_fd)
        os.close(self.call_fd)

    def attach(
        self, connection: Connection, index: int, *, enable: bool = True, base: int | None = None
    ) -> None:
        """Make this the back-end's vring `index`, and start it."""
        connection.set_vring_num(index, self.size)
        connection.set_vring_base(index, self.base if base is None else base)
        connection.set_vring_addr(
            index,
            self.memory.user_addr(self.desc_addr),
            self.memory.user_addr(self.avail_addr),
            self.memory.user_addr(self.used_addr),
        )
        connection.set_vring_call(index, self.call_fd)
        connection.set_vring_kick(index, self.kick_fd)
        if enable:
            connection.set_vring_enable(index, True)

    @property
    def base(self) -> int:
        """The base from which an idle device continues, for SET_VRING_BASE."""
        return self.last_used & 0xFFFF

    @property
    def known_base(self) -> int:
        """The base that QEMU sends after the back-end has died."""
        return int(self.used_idx[0])

    @property
    def in_flight(self) -> int:
        """Chains that the device has not used yet."""
        return len(self._chains)

    @property
    def free(self) -> int:
        """Descriptors that `add` may use."""
        return len(self._free)

    # Making buffers available

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Add a chain, which the device does not see before `publish`; return its head."""
        needed = 1 if indirect else len(segments)
        if len(self._free) < needed:
            raise RingFullError(f"{needed} descriptors wanted, {len(self._free)} free")
        chain = [self._free.pop() for _ in range(needed)]
        head = chain[0]
        if indirect:
            table = self._indirect_table(head, len(segments))
            rows = self.memory.view(table, desc_bytes(len(segments))).view(DESC)
            _fill(rows, segments, range(len(segments)))
            self.desc[head] = (table, desc_bytes(len(segments)), DESC_F_INDIRECT, 0)
        else:
            _fill(self.desc, segments, chain)
        self._chains[head] = chain
        self.make_available(head)
        return head

    def make_available(self, head: int) -> None:
        """Add a head, valid or not, to the avail ring; `publish` shows it to the device."""
        self.avail_ring[self.next_avail % self.size] = head
        self.next_avail += 1

    def _indirect_table(self, head: int, count: int) -> int:
        """Return the guest address of a head's indirect table, which grows when needed."""
        table = self._indirect_tables.get(head)
        if table is None or count > self.size:
            table = self.memory.allocate(desc_bytes(max(count, self.size)), 16)
            self._indirect_tables[head] = table
        return table

    def publish(self) -> bool:
        """Show all added chains to the device; return whether it wants a notification."""
        old = self._published
        if old == self.next_avail:
            return False
        fence()  # the chains are stored before the index
        self.avail_idx[0] = self.next_avail & 0xFFFF
        self._published = self.next_avail
        fence()  # the index is stored before the device's event index is loaded
        return self._wants_notification(old)

    def wants_notification(self) -> bool:
        """Return whether the device now wants a notification for the added chains."""
        fence()
        return self._wants_notification(self._published)

    def _wants_notification(self, old: int) -> bool:
        if not self.event_idx:
            return not int(self.used_flags[0]) & USED_F_NO_NOTIFY
        event = int(self.avail_event[0])
        # VIRTIO 1.3, 2.7.10: whether the index has passed `event`.
        return (self.next_avail - event - 1) & 0xFFFF < (self.next_avail - old) & 0xFFFF

    def kick(self, *, force: bool = False) -> None:
        """Publish, and notify the device if it wants that, or in any case."""
        if self.publish() or force:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)

    # Taking used buffers

    def has_used(self) -> bool:
        """Return whether there are used buffers that were not taken yet."""
        return int(self.used_idx[0]) != self.last_used & 0xFFFF

    def poll(self) -> list[Used]:
        """Take all used buffers."""
        fresh = (int(self.used_idx[0]) - self.last_used) & 0xFFFF
        fence()  # the elements are loaded after the index
        done = []
        for _ in range(fresh):
            element = self.used_ring[self.last_used % self.size]
            used = Used(int(element["id"]), int(element["len"]))
            self.last_used += 1
            self._free.extend(reversed(self._chains.pop(used.head)))
            done.append(used)
        return done

    def wait(self, timeout: float = 30.0) -> list[Used]:
        """Take used buffers; sleep until there are any."""
        while True:
            done = self.poll()
            if done:
                return done
            self.arm()
            done = self.poll()
            if done:
                return done
            if not select.select([self.call_fd], [], [], timeout)[0]:
                raise CompletionTimeoutError(
                    f"{self.in_flight} chains in flight, none used in {timeout} s"
                )
            os.eventfd_read(self.call_fd)

    def arm(self) -> None:
        """Ask for an interrupt for the next used buffer."""
        if self.event_idx:
            self.used_event[0] = self.last_used & 0xFFFF
        else:
            self.avail_flags[0] &= ~np.uint16(AVAIL_F_NO_INTERRUPT)
        fence()

    def suppress_interrupts(self) -> None:
        """Ask for no interrupts, until `wait` is called."""
        if self.event_idx:
            self.used_event[0] = (self.last_used - 1) & 0xFFFF
        else:
            self.avail_flags[0] |= np.uint16(AVAIL_F_NO_INTERRUPT)


def _fill(
    rows: np.ndarray[tuple[int], np.dtype[np.void]],
    segments: Sequence[Segment],
    numbers: Sequence[int],
) -> None:
    """Write a chain into the descriptors `numbers` of a table."""
    for position, (segment, number) in enumerate(zip(segments, numbers, strict=True)):
        last = position == len(segments) - 1
        flags = (0 if last else DESC_F_NEXT) | (DESC_F_WRITE if segment.writable else 0)
        following = 0 if last else numbers[position + 1]
        rows[number] = (segment.addr, segment.length, flags, following)
