# SPDX-License-Identifier: Apache-2.0
"""Both sides of a packed queue, and a slow device that is judge of the fast ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from tests.frontend.memory import Memory
from tests.frontend.packed import PackedDriverRing
from tests.virtqueue.reference import (
    MAX_DESCRIPTORS,
    Chain,
    Region,
    chains_of,
    finish_chain,
    in_one_region,
    regions_of,
)
from tests.virtqueue.support import KIB, LAYOUT, map_memory, vring_config
from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.errors import BrokenRingError, ChainFault
from vhostblk.virtqueue.layout import PACKED_DESC
from vhostblk.virtqueue.packed import PackedQueue
from vhostblk.virtqueue.packed_walker import walk_packed_any

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEXT, _WRITE, _INDIRECT, _AVAIL, _USED = 1, 2, 4, 1 << 7, 1 << 15


class Broken(NamedTuple):
    """The verdict that a ring, not a chain, is wrong; what was taken before it is not counted."""


class Descriptor(NamedTuple):
    """One descriptor of a packed ring or table."""

    addr: int
    length: int
    id: int
    flags: int


def read_descriptor(table: int, index: int) -> Descriptor:
    """Read a descriptor at a host address."""
    raw = np.frombuffer(view_memory(table + 16 * index, 16), PACKED_DESC)[0]
    return Descriptor(*map(int, raw.tolist()))


def take_chains(
    ring: int, size: int, place: int, taken: int, in_flight: set[int], limit: int
) -> list[list[Descriptor]] | Broken:
    """Take available chains from `place` on, one descriptor after the other.

    A broken ring yields nothing, with one exception: valid chains before a chain without an end
    are taken first. The ids of all chains that are found are checked.
    """
    chains: list[list[Descriptor]] = []
    ids = set(in_flight)
    while len(chains) < limit and taken < size:
        head = read_descriptor(ring, place % size)
        wanted = _AVAIL if place < size else _USED
        if head.flags & (_AVAIL | _USED) != wanted:
            break
        chain = [head]
        while chain[-1].flags & _NEXT and taken + len(chain) < size:
            chain.append(read_descriptor(ring, (place + len(chain)) % size))
        if chain[-1].flags & _NEXT:
            if not chains:
                return Broken()
            break
        chains.append(chain)
        place = (place + len(chain)) % (2 * size)
        taken += len(chain)
    for chain in chains:
        if chain[-1].id >= size or chain[-1].id in ids:
            return Broken()
        ids.add(chain[-1].id)
    return chains


def judge(chain: Sequence[Descriptor], regions: Sequence[Region]) -> Chain:
    """Say what one chain is."""
    buffers: list[tuple[int, int, bool]] = []
    fault = ChainFault.NONE
    head = chain[-1].id
    for number, desc in enumerate(chain):
        if number == MAX_DESCRIPTORS:
            fault = ChainFault.TOO_LONG
            break
        if not desc.flags & _INDIRECT:
            buffers.append((desc.addr, desc.length, bool(desc.flags & _WRITE)))
            continue
        if len(chain) > 1:
            fault = ChainFault.INDIRECT_NESTED
        elif desc.length == 0 or desc.length % 16 or desc.length > MAX_DESCRIPTORS * 16:
            fault = ChainFault.INDIRECT_LENGTH
        elif (table := in_one_region(desc.addr, desc.length, regions)) is None:
            fault = ChainFault.INDIRECT_UNMAPPED
        else:
            entries = [read_descriptor(table, place) for place in range(desc.length // 16)]
            buffers = [(e.addr, e.length, bool(e.flags & _WRITE)) for e in entries]
        break
    return finish_chain(head, buffers, fault, regions)


class PackedPair:
    """A packed queue's driver side and device side, in one memory."""

    def __init__(
        self,
        size: int = 8,
        *,
        start: int = 0,
        event_idx: bool = False,
        layout: Sequence[tuple[int, int]] = (*LAYOUT, (1 << 33, 2048 * KIB)),
    ) -> None:
        self.memory = Memory(layout)
        self.driver = PackedDriverRing(self.memory, size, event_idx=event_idx, start=start)
        self.mapped = map_memory(self.memory)
        config = vring_config(self.driver, self.memory)
        self.device = PackedQueue(config, self.mapped, event_idx=event_idx)

    def close(self) -> None:
        self.driver.close()
        self.memory.close()

    def ring_host(self) -> int:
        """Where the ring is."""
        user = self.memory.user_addr(self.driver.desc_addr)
        return self.mapped.translate_user(user, 16 * self.driver.size)

    def offer(self, ids: Sequence[int], length: int = 1) -> None:
        """Make chains of `length` empty descriptors available, under ids sensible or not."""
        for number in ids:
            self.driver.put(number, [(0, 0, 0)] * length)
        self.driver.publish()

    def take(self, limit: int = 1 << 16) -> list[int]:
        """Pop, and return the ids."""
        batch = self.device.pop(limit)
        return [] if batch is None else batch.heads.tolist()

    def take_judged(self, limit: int = 1 << 16) -> list[Chain]:
        """Pop, and hold what comes against the slow device; nothing comes from a broken ring."""
        device = self.device
        in_flight = set(np.flatnonzero(device._in_flight).tolist())
        slow = take_chains(
            self.ring_host(), device.size, device._next_avail, device._taken, in_flight, limit
        )
        if isinstance(slow, Broken):
            with pytest.raises(BrokenRingError):
                device.pop(limit)
            return []
        expected = [judge(chain, regions_of(self.mapped)) for chain in slow]
        batch = device.pop(limit)
        found = [] if batch is None else chains_of(batch)
        assert found == expected
        if slow:
            flat = np.array([tuple(d) for chain in slow for d in chain], PACKED_DESC)
            ids = np.array([chain[-1].id for chain in slow], np.uint16)
            counts = np.array([len(chain) for chain in slow], np.int64)
            assert chains_of(walk_packed_any(ids, flat, counts, self.mapped)) == expected
        return expected

    def give_back(self, ids: Sequence[int], length: int = 0) -> bool:
        """Push chains that took `length` bytes each; tell whether the driver is to be notified."""
        return self.device.push(np.array(ids, np.uint16), np.full(len(ids), length, np.uint32))
