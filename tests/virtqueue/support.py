# SPDX-License-Identifier: Apache-2.0
"""A guest for walkers and queues: memory that both sides see, and rings written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.frontend.memory import Memory
from tests.frontend.packed import PackedDriverRing
from tests.frontend.ring import DriverRing
from tests.virtqueue.reference import Chain, chains_of, regions_of, walk_chains
from vhostblk.virtqueue.config import RegionDescription, VringConfig
from vhostblk.virtqueue.layout import DESC, desc_bytes
from vhostblk.virtqueue.memory import GuestMemory, MemoryRegion
from vhostblk.virtqueue.split import SplitQueue
from vhostblk.virtqueue.walker import walk, walk_any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.frontend.layout import vhost_user

KIB = 1024

#: Adjacent regions at 0 and 64 KiB; a hole; one region far away.
LOW, ADJACENT, HOLE, FAR = 0, 64 * KIB, 128 * KIB, 1 << 32
LAYOUT = ((LOW, 64 * KIB), (ADJACENT, 64 * KIB), (FAR, 64 * KIB))


class Desc(NamedTuple):
    """One descriptor, as it stands in a table."""

    addr: int
    length: int
    flags: int = 0
    next: int = 0


def map_memory(memory: Memory) -> GuestMemory:
    """Map a front-end's memory as a back-end does."""
    return GuestMemory(MemoryRegion.map(described(region)) for region in memory.describe())


def described(region: vhost_user.MemoryRegion) -> RegionDescription:
    """Return what a transport hands on of a region that a front-end describes."""
    return RegionDescription(*region)


def write_table(memory: Memory, addr: int, descriptors: Iterable[Desc]) -> None:
    """Write descriptors to guest memory."""
    memory.write(addr, np.array([tuple(d) for d in descriptors], DESC).tobytes())


class Guest:
    """Memory in several regions and one descriptor table, at the end of the low region."""

    def __init__(self, queue_size: int = 8, layout: Sequence[tuple[int, int]] = LAYOUT) -> None:
        self.memory = Memory(layout)
        self.mapped = map_memory(self.memory)
        self.queue_size = queue_size
        self.table = layout[0][0] + layout[0][1] - desc_bytes(queue_size)

    def close(self) -> None:
        self.memory.close()

    def table_host(self) -> int:
        user = self.memory.user_addr(self.table)
        return self.mapped.translate_user(user, desc_bytes(self.queue_size))

    def walk(self, descriptors: Sequence[Desc], heads: Sequence[int] = (0,)) -> list[Chain]:
        """Write the table and walk it, having made sure that the reference sees the same."""
        write_table(self.memory, self.table, descriptors)
        return self.check(heads)

    def check(self, heads: Sequence[int]) -> list[Chain]:
        """Walk what is in memory, with all walkers; the reference sees the same."""
        table, size = self.table_host(), self.queue_size
        array = np.array(heads, np.uint16)
        chains = chains_of(walk(array, table, size, self.mapped))
        expected = walk_chains(heads, table, size, regions_of(self.mapped))
        assert chains == expected
        assert chains_of(walk_any(array, table, size, self.mapped)) == expected
        return chains

    def host(self, guest_addr: int) -> int:
        """Translate an address of mapped guest memory."""
        (host,) = self.mapped.translate(np.array([guest_addr], np.uint64), np.ones(1, np.uint64))
        assert host
        return int(host)


class QueuePair:
    """A split queue's driver side and device side, in one memory."""

    def __init__(
        self, size: int = 8, *, start: int = 0, event_idx: bool = False, memory_bytes: int = 1 << 20
    ) -> None:
        self.memory = Memory(((0, 64 * KIB), (1 << 20, memory_bytes)))
        self.driver = DriverRing(self.memory, size, event_idx=event_idx, start=start)
        self.mapped = map_memory(self.memory)
        self.device = SplitQueue(self.config(), self.mapped, event_idx=event_idx)

    def config(self) -> VringConfig:
        return vring_config(self.driver, self.memory)

    def close(self) -> None:
        self.driver.close()
        self.memory.close()

    def offer(self, heads: Sequence[int]) -> None:
        """Make heads available, sensible or not."""
        for head in heads:
            self.driver.make_available(head)
        self.driver.publish()

    def take(self, limit: int = 1 << 16) -> list[int]:
        """Pop, and return the heads."""
        batch = self.device.pop(limit)
        return [] if batch is None else batch.heads.tolist()

    def give_back(self, heads: Sequence[int], length: int = 0) -> bool:
        """Push chains that took `length` bytes each; tell whether the driver is to be notified."""
        return self.device.push(np.array(heads, np.uint16), np.full(len(heads), length, np.uint32))


def vring_config(ring: DriverRing, memory: Memory, index: int = 0) -> VringConfig:
    """Say where a driver's ring is."""
    return VringConfig(
        index,
        ring.size,
        memory.user_addr(ring.desc_addr),
        memory.user_addr(ring.avail_addr),
        memory.user_addr(ring.used_addr),
        ring.base,
        packed=isinstance(ring, PackedDriverRing),
    )
