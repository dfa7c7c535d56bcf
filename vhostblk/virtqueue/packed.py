# SPDX-License-Identifier: Apache-2.0
"""The device side of a packed virtqueue (VIRTIO 1.3, section 2.8).

Driver and device share one ring of descriptors, and both go round it. The AVAIL and USED flags of a
descriptor, compared with the wrap counter, tell which side owns it. A *place* is an index and a
wrap counter in one number: the index in the first lap (counter 1), or the index plus the queue size
in the second lap, modulo two laps. Requests are identified by the buffer id of the driver, which
must be less than the queue size.

Order of memory accesses, with the driver on another CPU:

- A head's flags are loaded with acquire. Its other fields, and the rest of its chain, which the
  driver has written before, are read after that (2.8.21.1).
- Used descriptors of one burst are written completely, except for the flags of the first one. These
  are stored last, with release: the driver starts there, so it sees all descriptors or none.
- There is a full fence between that store and loading the driver's event suppression, and between
  storing our event suppression and checking the ring again, as with split rings.

A chain's descriptors are in flight until its used descriptor is written, and are not taken again
before. A chain that extends into descriptors in flight makes the ring broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.virtqueue import layout
from vhostblk.virtqueue.barrier import fence, load_acquire_u16, store_release_u16
from vhostblk.virtqueue.errors import BrokenRingError, RingSetupError
from vhostblk.virtqueue.inflight_packed import PackedInflight
from vhostblk.virtqueue.layout import PACKED_DESC, PACKED_F_AVAIL, PACKED_F_USED
from vhostblk.virtqueue.packed_walker import walk_packed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.batch import RequestBatch
    from vhostblk.virtqueue.config import VringConfig
    from vhostblk.virtqueue.inflight_area import InflightPart
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog

    #: Ring descriptors of chains, their number in each chain, and its buffer id.
    _Chains = tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.uint16]]

_OWNER = PACKED_F_AVAIL | PACKED_F_USED

#: The second half of a descriptor, which a used descriptor has.
_TAIL = np.dtype([("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])

#: Minimum number of descriptors to read at once. Longer bursts cost another read.
_MIN_WINDOW = 16


def decode_place(number: int, size: int) -> int:
    """Return the place for 15 bits of index and the wrap counter; raises RingSetupError."""
    index = number & layout.PLACE_MASK
    if index >= size:
        raise RingSetupError(f"place {index} in a packed ring of {size}")
    return index if number >> layout.WRAP_BIT else index + size


def encode_place(place: int, size: int) -> int:
    """Return a place as 15 bits of index and the wrap counter."""
    return place | 1 << layout.WRAP_BIT if place < size else place - size


class PackedQueue:
    """One running packed virtqueue."""

    def __init__(
        self,
        config: VringConfig,
        memory: GuestMemory,
        *,
        event_idx: bool,
        inflight: InflightPart | None = None,
    ) -> None:
        """Record requests in flight in `inflight`, and begin with those in the record.

        Raises SetupError if a part is not in guest memory or misaligned, if the base is outside
        the ring, or if the record of requests in flight is corrupt.
        """
        self.size = size = config.size
        self._config = config
        self._event_idx = event_idx
        self._in_flight = np.zeros(size, np.bool_)
        self._marks = np.zeros(size, np.int64)
        #: Number of ring descriptors of each chain in flight, by buffer id, and of all chains.
        self._counts = np.zeros(size, np.int64)
        self._taken = 0
        #: Number of chains in flight.
        self._chains = 0
        self._window = _MIN_WINDOW
        self._map(memory)
        self._log: QueueLog | None = None
        available, used = config.next_avail & 0xFFFF, config.next_avail >> 16
        self._next_avail = decode_place(available, size)
        # Front-ends without requests in flight may omit the other half.
        self._next_used = decode_place(used, size) if used else self._next_avail
        self.inflight: PackedInflight | None = None
        #: Buffer ids to be taken again, before any new ones; their ring descriptors.
        self.left = np.empty(0, np.uint16)
        self._left_descriptors = np.empty(0, PACKED_DESC)
        if inflight is not None:
            self._recover(inflight)

    def _recover(self, part: InflightPart) -> None:
        """Continue from the record; only it has the state of the ring at the stop or crash."""
        self.inflight = PackedInflight(part, self.size, self._next_used, self._flags)
        self._next_used = self.inflight.used
        self.left = self.inflight.left
        self._left_descriptors = self.inflight.left_descriptors
        self._counts[self.left] = self.inflight.left_counts
        self._in_flight[self.left] = True
        self._taken = len(self._left_descriptors)
        self._chains = len(self.left)
        self._next_avail = self._ahead(self._next_used, self._taken)
        self._hide_unshown()

    def _hide_unshown(self) -> None:
        """Hide used descriptors that were not shown.

        A process that died before it showed a burst has left the used descriptors of the burst,
        except the first one, in the ring. When another burst shows the first one, the driver would
        accept the others as used.
        """
        places = (self._next_used + np.arange(self._taken)) % (2 * self.size)
        index = places % self.size
        owner = np.where(places < self.size, PACKED_F_AVAIL, PACKED_F_USED).astype(np.uint16)
        self._desc_flags[index] = (self._desc_flags[index] & ~np.uint16(_OWNER)) | owner

    def _map(self, memory: GuestMemory) -> None:
        config, nbytes = self._config, PACKED_DESC.itemsize * self.size
        desc = memory.translate_user(config.desc_addr, nbytes)
        driver = memory.translate_user(config.avail_addr, layout.EVENT_BYTES)
        device = memory.translate_user(config.used_addr, layout.EVENT_BYTES)
        if desc % 16 or driver % 4 or device % 4:
            raise RingSetupError(f"vring {config.index}: a ring is not aligned in host memory")
        self.memory = memory
        self._desc_addr, self._driver_addr, self._device_addr = desc, driver, device
        self._desc = memory.view(desc, nbytes).view(PACKED_DESC)
        self._desc_flags = self._desc["flags"]
        self._desc_tails = self._desc.view("<u8")[1::2]

    def move(self, memory: GuestMemory) -> None:
        """Switch to a new memory table while no request is in flight.

        Raises SetupError if it does not have the ring; the old table then stays in use.
        """
        self._map(memory)

    def set_log(self, log: QueueLog | None) -> None:
        """Start or stop logging writes to the ring; the whole ring is logged at once."""
        self._log = log
        self._log_used(0, self.size)
        self._log_event()

    def _log_used(self, first: int, count: int) -> None:
        """Log used descriptors by their places; the log address is that of a used ring."""
        before_end = min(count, self.size - first)
        self._note(first * PACKED_DESC.itemsize + self._desc_addr, before_end)
        if count > before_end:
            self._note(self._desc_addr, count - before_end)

    def _note(self, host: int, descriptors: int) -> None:
        if self._log is not None and self._log.used:
            lengths = np.array([descriptors * PACKED_DESC.itemsize], np.uint64)
            self._log.mark_host(self.memory, np.array([host], np.uint64), lengths)

    def _log_event(self) -> None:
        if self._log is not None and self._log.used:
            hosts = np.array([self._device_addr], np.uint64)
            self._log.mark_host(self.memory, hosts, np.array([layout.EVENT_BYTES], np.uint64))

    @property
    def base(self) -> int:
        """The base for SET_VRING_BASE: the places of the next available and used descriptors."""
        next_avail = encode_place(self._next_avail, self.size)
        return next_avail | encode_place(self._next_used, self.size) << 16

    def addresses(self) -> dict[str, int]:
        """Return the ring as the members of the engine's `struct vb_ring`."""
        return {
            "desc": self._desc_addr,
            "avail": self._driver_addr,
            "used": self._device_addr,
            "size": self.size,
            "next_avail": self._next_avail % self.size,
            "next_used": self._next_used % self.size,
            "event_idx": self._event_idx,
            "packed": 1,
            "avail_wrap": self._next_avail < self.size,
            "used_wrap": self._next_used < self.size,
            "taken": self._taken,
        }

    def _ahead(self, place: int, count: int) -> int:
        return (place + count) % (2 * self.size)

    def _flags(self, place: int) -> int:
        """Load a descriptor's flags."""
        index = place % self.size
        return load_acquire_u16(
            self._desc_addr + PACKED_DESC.itemsize * index + layout.PACKED_FLAGS_OFFSET
        )

    def _is_available(self) -> bool:
        if self._taken == self.size:
            return False
        wanted = PACKED_F_AVAIL if self._next_avail < self.size else PACKED_F_USED
        return self._flags(self._next_avail) & _OWNER == wanted

    # Taking

    def pop(self, limit: int) -> RequestBatch | None:
        """Take up to `limit` chains: those left in flight, then those available; None: no more.

        Raises BrokenRingError on a chain without an end, a buffer id out of range, or one made
        available while its request is still in flight. Nothing is taken then.
        """
        if len(self.left):
            return self._pop_left(limit)
        if not self._is_available():
            return None
        descriptors, counts, ids = self._copy_singles(limit) or self._copy_chains(limit)
        if not len(ids):  # the driver has taken it back, which is not allowed
            return None
        self._take(ids)
        self._counts[ids] = counts
        self._taken += len(descriptors)
        self._chains += len(ids)
        self._next_avail = self._ahead(self._next_avail, len(descriptors))
        if self.inflight is not None:
            self.inflight.take(ids, counts, descriptors)
        return walk_packed(ids, descriptors, counts, self.memory)

    def _pop_left(self, limit: int) -> RequestBatch:
        ids, self.left = self.left[:limit], self.left[limit:]
        counts = self._counts[ids]
        total = int(counts.sum())
        descriptors = self._left_descriptors[:total]
        self._left_descriptors = self._left_descriptors[total:]
        return walk_packed(ids, descriptors, counts, self.memory)

    def _copy_singles(self, limit: int) -> _Chains | None:
        """Return the same as `_copy_chains` if each chain is one descriptor and all are in one lap.

        Otherwise return None; then the descriptors are read again. Drivers mostly use indirect
        tables.
        """
        first, room = self._next_avail % self.size, self.size - self._taken
        window = min(room, limit, self._window, self.size - first)
        wanted = PACKED_F_AVAIL if self._next_avail < self.size else PACKED_F_USED
        available = (self._desc_flags[first : first + window] & _OWNER) == wanted
        number = window if available.all() else int(available.argmin())
        if number == window < min(room, limit):
            return None
        fence()
        descriptors = self._desc[first : first + number].copy()
        if not number or int(np.bitwise_or.reduce(descriptors["flags"])) & layout.DESC_F_NEXT:
            return None
        self._window = max(2 * number, _MIN_WINDOW)
        return descriptors, np.ones(number, np.int64), descriptors["id"]

    def _copy_chains(self, limit: int) -> _Chains:
        """Copy up to `limit` available chains: descriptors, the chains' lengths and buffer ids."""
        room = self.size - self._taken
        window = min(room, self._window)
        while True:
            # Flags that were read before the other fields tell which heads are available.
            owners = self._copy(self._desc_flags, window) & _OWNER
            fence()
            descriptors = self._copy(self._desc, window)
            ends = np.flatnonzero((descriptors["flags"] & layout.DESC_F_NEXT) == 0)[:limit]
            starts = np.empty_like(ends)
            starts[:1], starts[1:] = 0, ends[:-1] + 1
            number = self._count_available(owners, starts)
            if window == room or number == limit or number < len(ends):
                break
            window = min(room, 4 * window)
        if not len(ends):
            raise BrokenRingError(f"a chain without an end in a queue of {self.size}")
        total = int(ends[number - 1]) + 1 if number else 0
        self._window = max(2 * total, _MIN_WINDOW)
        starts, ends = starts[:number], ends[:number]
        return descriptors[:total], ends - starts + 1, descriptors["id"][ends]

    def _count_available(self, owners: NDArray[Any], starts: NDArray[np.intp]) -> int:
        """Return the number of chains at the beginning that are available."""
        if not len(starts):
            return 0
        first_lap = self._next_avail < self.size
        mine = np.uint16(PACKED_F_AVAIL if first_lap else PACKED_F_USED)
        available = owners[starts] == mine
        before_end = self.size - self._next_avail % self.size
        if before_end <= int(starts[-1]):
            next_lap = starts >= before_end
            available[next_lap] = owners[starts[next_lap]] == mine ^ np.uint16(_OWNER)
        return len(starts) if available.all() else int(available.argmin())

    def _copy(self, column: NDArray[Any], count: int) -> NDArray[Any]:
        """Copy `count` elements, beginning at the next place to take."""
        start = self._next_avail % self.size
        end = start + count
        if end <= self.size:
            return column[start:end].copy()
        return np.concatenate((column[start:], column[: end - self.size]))

    def _take(self, ids: NDArray[np.uint16]) -> None:
        if int(ids.max()) >= self.size:
            raise BrokenRingError(f"buffer id {int(ids.max())} in a queue of {self.size}")
        order = np.arange(len(ids))
        self._marks[ids] = order
        if self._in_flight.take(ids).any() or (self._marks.take(ids) != order).any():
            raise BrokenRingError("a buffer id was made available while in flight")
        self._in_flight[ids] = True

    # Returning chains

    def push(self, heads: NDArray[np.uint16], lengths: NDArray[np.uint32]) -> bool:
        """Return chains to the driver, in this order; return whether it wants a notification.

        `heads` are buffer ids, `lengths` the bytes written to device-writable buffers.
        """
        number, first = len(heads), self._next_used % self.size
        total = number
        ends: NDArray[np.int64] | None = None
        if self._taken != self._chains:  # some chains have several descriptors
            ends = np.cumsum(self._counts.take(heads))
            total = int(ends[-1])
        next_used = self._ahead(self._next_used, total)
        if self.inflight is not None:
            self.inflight.link(heads, next_used)
        flags = _OWNER if self._next_used < self.size else 0
        if number > 1:
            self._put_behind(first, ends, heads, lengths, flags)
        self._desc["id"][first] = heads[0]
        self._desc["len"][first] = lengths[0]
        self._in_flight[heads] = False
        self._taken -= total
        self._chains -= number
        self._next_used = next_used
        self._show(first, flags | layout.DESC_F_WRITE if lengths[0] else flags)
        if self._log is not None:
            self._log_used(first, total)
            self._log.signal()
        if self.inflight is not None:
            self.inflight.strike_out(heads)
        fence()
        return self._wants_notification(total)

    def _put_behind(
        self,
        first: int,
        ends: NDArray[np.int64] | None,
        heads: NDArray[np.uint16],
        lengths: NDArray[np.uint32],
        flags: int,
    ) -> None:
        """Write all used descriptors except the first one, which belongs at `first`.

        `ends` are the ends of the chains, relative to `first`; None: each is one descriptor.
        """
        number = len(heads) - 1
        tails = np.empty(number, _TAIL)
        tails["len"] = lengths[1:]
        tails["id"] = heads[1:]
        tails["flags"] = flags | layout.DESC_F_WRITE
        if not lengths.all():
            tails["flags"][lengths[1:] == 0] = flags
        if ends is None and first + number < self.size:
            self._desc_tails[first + 1 : first + 1 + number] = tails.view("<u8")
            return
        index = first + (np.arange(1, number + 1) if ends is None else ends[:-1])
        if int(index[-1]) >= self.size:
            tails["flags"][index >= self.size] ^= _OWNER
            index %= self.size
        self._desc_tails[index] = tails.view("<u8")

    def _show(self, index: int, flags: int) -> None:
        place = self._desc_addr + PACKED_DESC.itemsize * index + layout.PACKED_FLAGS_OFFSET
        store_release_u16(place, flags)

    def _wants_notification(self, count: int) -> bool:
        """Return whether the driver wants a notification for the last `count` ring descriptors."""
        flags = load_acquire_u16(self._driver_addr + layout.EVENT_FLAGS_OFFSET)
        if flags == layout.EVENT_DISABLE:
            return False
        if flags != layout.EVENT_DESC or not self._event_idx:
            return True
        wanted = load_acquire_u16(self._driver_addr)
        lap = 0 if wanted >> layout.WRAP_BIT else self.size
        event = (wanted & layout.PLACE_MASK) + lap
        return (self._next_used - event - 1) % (2 * self.size) < count

    # Notifications from the driver

    def has_available(self) -> bool:
        """Return whether a chain is available."""
        return bool(len(self.left)) or self._is_available()

    def enable_notifications(self) -> None:
        """Ask for a kick at the next available chain; check `has_available()` afterwards."""
        if self._event_idx:
            store_release_u16(self._device_addr, encode_place(self._next_avail, self.size))
            self._set_event_flags(layout.EVENT_DESC)
        else:
            self._set_event_flags(layout.EVENT_ENABLE)
        fence()

    def disable_notifications(self) -> None:
        """Ask for no kicks."""
        self._set_event_flags(layout.EVENT_DISABLE)

    def _set_event_flags(self, flags: int) -> None:
        store_release_u16(self._device_addr + layout.EVENT_FLAGS_OFFSET, flags)
        if self._log is not None:
            self._log_event()
