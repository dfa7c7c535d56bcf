# SPDX-License-Identifier: Apache-2.0
"""Guest memory: mapped regions as numpy arrays, and address translation.

A `GuestMemory` never changes. Adding or removing a region creates a new one that shares the
mappings. Requests in flight refer to the old one. A region is unmapped with the last table that has
it.

`span` is one uint8 array from the lowest to the highest mapped byte, so that a single fancy index
gathers or scatters across all regions. Between the regions there may be other memory of the
process: only addresses that `translate` has returned may be used as indices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.virtqueue.config import MAX_MEM_SLOTS
from vhostblk.virtqueue.errors import SetupError
from vhostblk.virtqueue.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from vhostblk.virtqueue.config import RegionDescription
    from vhostblk.virtqueue.mapping import LossSignal

_ADDRESS_SPACE = 1 << 64


class _RawMemory:
    """Memory at an address for numpy (the array interface protocol, version 3)."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One mapped region; addresses and sizes in bytes."""

    guest_addr: int
    size: int
    user_addr: int
    mapping: Mapping

    @classmethod
    def map(cls, described: RegionDescription, loss: LossSignal | None = None) -> MemoryRegion:
        """Map a region; raises SetupError if the description is invalid.

        The caller keeps the descriptor. `loss` is signalled when the file is truncated.
        """
        if described.size == 0:
            raise SetupError("memory region: size 0")
        for name in ("guest_addr", "user_addr"):
            if getattr(described, name) + described.size > _ADDRESS_SPACE:
                raise SetupError(f"memory region: {name} + size overflows")
        mapping = Mapping(described.fd, described.mmap_offset, described.size, loss=loss)
        return cls(described.guest_addr, described.size, described.user_addr, mapping)

    def is_at(self, guest_addr: int, size: int, user_addr: int) -> bool:
        """Return whether REM_MEM_REG with these fields removes this region."""
        return (self.guest_addr, self.size, self.user_addr) == (guest_addr, size, user_addr)


def map_regions(regions: Sequence[RegionDescription], loss: LossSignal) -> list[MemoryRegion]:
    """Map regions, and close their descriptors in any case."""
    try:
        return [MemoryRegion.map(region, loss) for region in regions]
    finally:
        for region in regions:
            os.close(region.fd)


class GuestMemory:
    """An immutable table of regions.

    Raises SetupError if there are too many regions or if they overlap.
    """

    def __init__(self, regions: Iterable[MemoryRegion] = ()) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_addr))
        if len(self.regions) > MAX_MEM_SLOTS:
            raise SetupError(f"more than {MAX_MEM_SLOTS} memory regions")
        self._refuse_overlaps()
        self._guest = np.array([region.guest_addr for region in self.regions], np.uint64)
        self._size = np.array([region.size for region in self.regions], np.uint64)
        self._host = np.array([region.mapping.address for region in self.regions], np.uint64)
        self._shift: NDArray[np.uint64] = self._host - self._guest
        if self.regions:
            low = min(region.mapping.address for region in self.regions)
            high = max(region.mapping.address + region.size for region in self.regions)
        else:
            low = high = 0
        self.span_base = low
        self.span: NDArray[np.uint8] = (
            np.asarray(_RawMemory(low, high - low)) if self.regions else np.empty(0, np.uint8)
        )

    def _refuse_overlaps(self) -> None:
        by_user = sorted(self.regions, key=lambda region: region.user_addr)
        for name, ordered in (("guest_addr", self.regions), ("user_addr", by_user)):
            for before, after in pairwise(ordered):
                if getattr(before, name) + before.size > getattr(after, name):
                    raise SetupError(f"memory regions overlap at {name} {getattr(after, name):#x}")

    def with_region(self, region: MemoryRegion) -> GuestMemory:
        """Return a table with an additional region."""
        return GuestMemory((*self.regions, region))

    def without_region(self, guest_addr: int, size: int, user_addr: int) -> GuestMemory:
        """Return a table without the region at exactly this place."""
        kept = [r for r in self.regions if not r.is_at(guest_addr, size, user_addr)]
        if len(kept) == len(self.regions):
            raise SetupError(f"no memory region at {guest_addr:#x} of {size:#x} bytes")
        return GuestMemory(kept)

    def translate(self, addr: NDArray[np.uint64], length: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return host addresses; 0 if a range is not completely inside one region.

        `addr` and `length` are uint64 arrays of one shape, in bytes. No sum can overflow: an
        address below its region wraps to a huge offset, which exceeds the size.
        """
        if len(addr) and (index := self._one_region(addr, length)) >= 0:
            shifted: NDArray[np.uint64] = addr + self._shift[index]
            return shifted
        host, room = self.reach(addr)
        return np.where((room > 0) & (length <= room), host, np.uint64(0))

    def _one_region(self, addr: NDArray[np.uint64], length: NDArray[np.uint64]) -> int:
        """Return the region with all ranges, or -1; buffers are mostly close together."""
        low, high, longest = int(addr.min()), int(addr.max()), max(int(length.max()), 1)
        for index, region in enumerate(self.regions):
            if region.guest_addr <= low and high + longest <= region.guest_addr + region.size:
                return index
        return -1

    def reach(self, addr: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return host addresses, and the number of bytes from there in the same region.

        If the number is 0, nothing is mapped, and the address has no meaning.
        """
        if not self.regions:
            return np.zeros(len(addr), np.uint64), np.zeros(len(addr), np.uint64)
        index = np.searchsorted(self._guest, addr, side="right") - 1
        offset = addr - self._guest.take(index)
        size = self._size.take(index)
        return offset + self._host.take(index), np.where(offset < size, size - offset, np.uint64(0))

    def guest_addresses(self, hosts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the guest addresses of host addresses, all of which are in the table."""
        order = np.argsort(self._host)
        index = order[np.searchsorted(self._host[order], hosts, side="right") - 1]
        addresses: NDArray[np.uint64] = hosts - self._shift.take(index)
        return addresses

    def translate_user(self, user_addr: int, length: int) -> int:
        """Return the host address of a ring; raises SetupError if it is not mapped."""
        for region in self.regions:
            offset = user_addr - region.user_addr
            if 0 <= offset <= region.size - length:
                return region.mapping.address + offset
        raise SetupError(f"ring at {user_addr:#x} of {length} bytes is not in guest memory")

    def view(self, host_addr: int, length: int) -> NDArray[np.uint8]:
        """Return translated memory as a uint8 array, which is valid while this table exists."""
        start = host_addr - self.span_base
        return self.span[start : start + length]
