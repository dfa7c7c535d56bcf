# SPDX-License-Identifier: Apache-2.0
"""The record of a packed queue's requests in flight, in memory that outlives this process.

Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking";
`vhostblk.virtqueue.inflight` explains their purpose. In a packed ring, used descriptors overwrite
those of chains in flight, so the record has a copy of each taken chain. The entries of the copies
come from a free list, which begins at `free_head`:

- A chain gets the entries at the list's head. It counts as taken once `old_free_head` has been set
to
  `free_head`; until then its entries are still in the list.
- Completed chains are put back at the list's head, and `used_idx` is advanced, before the ring
shows
  them to the driver; the `old_` fields are updated after it. In between, the flags of the first
  used descriptor in the ring tell whether the chains were shown. If not, the other used descriptors
  of the burst may be in the ring already, and must be hidden (`PackedQueue`).

Fields that change together are stored together: both heads in one 32-bit store, both places with
their wrap counters in one 64-bit store.

The memory is read once, when the queue starts, and validated like all data from a peer. After that,
a private copy of the list's links is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.errors import InflightError
from vhostblk.virtqueue.layout import (
    INFLIGHT_DESC_PACKED,
    INFLIGHT_HEADER_PACKED,
    INFLIGHT_VERSION,
    MAX_QUEUE_SIZE,
    PACKED_DESC,
    PACKED_F_AVAIL,
    PACKED_F_USED,
    inflight_packed_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vhostblk.virtqueue.inflight_area import InflightPart

_COPIED = ("addr", "len", "id", "flags")


class PackedInflight:
    """The record of one packed queue of `size` entries.

    `used` is the front-end's place of the next used descriptor; a record that was written before
    has a newer one. `flags_at(place)` reads a ring descriptor's flags. Raises InflightError for an
    inconsistent record.
    """

    def __init__(
        self, part: InflightPart, size: int, used: int, flags_at: Callable[[int], int]
    ) -> None:
        if inflight_packed_bytes(size) > part.size:
            raise InflightError(f"{part.size} bytes have no room for {size} descriptors")
        self._part = part
        self._size = size
        raw = np.frombuffer(view_memory(part.address, part.size), np.uint8)
        header = INFLIGHT_HEADER_PACKED.itemsize
        self._header = raw[:header].view(INFLIGHT_HEADER_PACKED)
        self._heads = raw[12:16].view("<u4")
        self._places = raw[16:24].view("<u8")
        room = min((part.size - header) // INFLIGHT_DESC_PACKED.itemsize, MAX_QUEUE_SIZE)
        self._desc = raw[header : header + room * INFLIGHT_DESC_PACKED.itemsize].view(
            INFLIGHT_DESC_PACKED
        )
        self.used = used
        #: The number of the next chain.
        self.counter = 0
        #: The successor of each entry in the free list or in a chain; the first entry of the list.
        self.links: list[int] = []
        self.free_head = 0
        #: First and last entry of each chain in flight, by buffer id.
        self.first = np.zeros(size, np.uint16)
        self.last = np.zeros(size, np.uint16)
        #: Buffer ids that an earlier process left in flight, in the order in which it took them;
        #: the number of ring descriptors of each, and the descriptors.
        self.left = np.empty(0, np.uint16)
        self.left_counts = np.empty(0, np.int64)
        self.left_descriptors = np.empty(0, PACKED_DESC)
        self._open(flags_at)

    @property
    def address(self) -> int:
        """The address of the record."""
        return self._part.address

    def _open(self, flags_at: Callable[[int], int]) -> None:
        header = self._header[0].copy()
        version = int(header["version"])
        if version not in (0, INFLIGHT_VERSION) or header["features"] != 0:
            raise InflightError(f"record of version {version}, features {header['features']:#x}")
        if version == 0:
            self._begin()
            return
        number = int(header["desc_num"])
        if not self._size <= number <= len(self._desc):
            raise InflightError(f"record of {number} descriptors for a queue of {self._size}")
        place = self._place(header["used_idx"], header["used_wrap_counter"])
        old_place = self._place(header["old_used_idx"], header["old_used_wrap_counter"])
        head, old_head = int(header["free_head"]), int(header["old_free_head"])
        if place != old_place and self._was_shown(flags_at(old_place), old_place):
            old_place, old_head = place, head
        self._recover(number, old_head)
        self._store_heads(old_head, old_head)
        self.used = old_place
        self._store_places(old_place, old_place)

    def _begin(self) -> None:
        """Initialise a new record, in which all entries are free."""
        number = len(self._desc)
        self.links = list(range(1, number + 1))
        self._desc["inflight"] = 0
        self._desc["next"] = self.links
        self._header["desc_num"] = number
        self._store_heads(0, 0)
        self._store_places(self.used, self.used)
        self._header["version"] = INFLIGHT_VERSION

    def _place(self, index: int, wrap_counter: int) -> int:
        if index >= self._size or wrap_counter > 1:
            raise InflightError(f"place {index}/{wrap_counter} in a queue of {self._size}")
        return int(index) if wrap_counter else int(index) + self._size

    def _was_shown(self, flags: int, place: int) -> bool:
        """Return whether a descriptor has changed since it became available."""
        available = PACKED_F_AVAIL if place < self._size else PACKED_F_USED
        return flags & (PACKED_F_AVAIL | PACKED_F_USED) != available

    # The record of an earlier process

    def _recover(self, number: int, free_head: int) -> None:
        """Read `number` entries: each must be free, or in exactly one chain."""
        noted = self._desc[:number].copy()
        self.links, self.free_head = noted["next"].tolist(), free_head
        seen = np.zeros(number, np.bool_)
        free = self._follow(free_head, number, seen)
        heads = np.flatnonzero((noted["inflight"] == 1) & ~seen)
        counters = noted["counter"][heads]
        heads = heads[np.argsort(counters, kind="stable")]
        chains = []
        for head in heads.tolist():
            wanted = int(noted["num"][head])
            chain = self._follow(head, wanted, seen)
            if not chain or len(chain) != wanted or chain[-1] != noted["last"][head]:
                raise InflightError(
                    f"chain of {wanted} descriptors at {head}, of which {len(chain)}"
                )
            chains.append(chain)
        taken = sum(map(len, chains))
        if taken > self._size or len(free) + taken != number:
            raise InflightError(f"{len(free)} free descriptors, {taken} in flight, of {number}")
        self._set_left(noted, chains)
        if len(heads):
            self.counter = (int(counters.max()) + 1) & 0xFFFF_FFFF_FFFF_FFFF
        self._desc["inflight"][free] = 0

    def _follow(self, entry: int, limit: int, seen: NDArray[np.bool_]) -> list[int]:
        """Follow the links from `entry` for `limit` entries or to the end; mark the entries."""
        found: list[int] = []
        while entry < len(seen) and len(found) < limit:
            if seen[entry]:
                raise InflightError(f"descriptor {entry} is in two lists")
            seen[entry] = True
            found.append(entry)
            entry = self.links[entry]
        return found

    def _set_left(self, noted: NDArray[np.void], chains: Sequence[Sequence[int]]) -> None:
        entries = [entry for chain in chains for entry in chain]
        lasts = [chain[-1] for chain in chains]
        ids = noted["id"][lasts]
        if len(ids) and (int(ids.max()) >= self._size or len(np.unique(ids)) < len(ids)):
            raise InflightError(f"buffer ids {ids.tolist()} in a queue of {self._size}")
        self.first[ids] = [chain[0] for chain in chains]
        self.last[ids] = lasts
        self.left = ids
        self.left_counts = np.array([len(chain) for chain in chains], np.int64)
        self.left_descriptors = np.empty(len(entries), PACKED_DESC)
        for name in _COPIED:
            self.left_descriptors[name] = noted[name][entries]

    # Changes by this process

    def _store_heads(self, head: int, old_head: int) -> None:
        self._heads[0] = head | old_head << 16
        self.free_head = head

    def _store_places(self, place: int, old_place: int) -> None:
        size = self._size
        indices = place % size | old_place % size << 16
        self._places[0] = indices | (place < size) << 32 | (old_place < size) << 40

    def take(
        self, ids: NDArray[np.uint16], counts: NDArray[np.int64], descriptors: NDArray[np.void]
    ) -> None:
        """Record chains, before anything else is done with them."""
        heads, lasts, entries = [], [], []
        entry, last, links = self.free_head, 0, self.links
        for count in counts.tolist():
            heads.append(entry)
            for _ in range(count):
                entries.append(entry)
                entry, last = links[entry], entry
            lasts.append(last)
        for name in _COPIED:
            self._desc[name][entries] = descriptors[name]
        self._desc["num"][heads] = counts
        self._desc["last"][heads] = lasts
        numbers = np.arange(len(heads), dtype=np.uint64) + np.uint64(self.counter)
        self._desc["counter"][heads] = numbers
        self.counter = (self.counter + len(heads)) & 0xFFFF_FFFF_FFFF_FFFF
        self._desc["inflight"][heads] = 1
        self._store_heads(entry, entry)
        self.first[ids], self.last[ids] = heads, lasts

    def link(self, ids: NDArray[np.uint16], used: int) -> None:
        """Put completed chains back into the list, before the ring shows them up to `used`."""
        old_head = head = self.free_head
        heads, lasts = self.first[ids].tolist(), self.last[ids].tolist()
        following = [head, *heads[:-1]]
        for last, entry in zip(lasts, following, strict=True):
            self.links[last] = entry
        self._desc["next"][lasts] = following
        self._store_heads(heads[-1], old_head)
        self._store_places(used, self.used)
        self.used = used

    def strike_out(self, ids: NDArray[np.uint16]) -> None:
        """Remove completed chains, after the ring has shown them."""
        self._desc["inflight"][self.first[ids]] = 0
        self._store_heads(self.free_head, self.free_head)
        self._store_places(self.used, self.used)
