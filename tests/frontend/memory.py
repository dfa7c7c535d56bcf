# SPDX-License-Identifier: Apache-2.0
"""Guest memory like a VMM's: files shared with the back-end, with holes between regions."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from tests.frontend.layout.vhost_user import MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MIB = 1 << 20

#: Two regions with a hole between them, as in every x86 machine with more than 3 GiB.
DEFAULT_LAYOUT = ((0, 4 * MIB), (1 << 32, 12 * MIB))

#: Front-end user addresses differ from guest addresses, so that confusing them is noticed.
_USER_BASE = 0x7F00_0000_0000


class OutOfMemoryError(Exception):
    """The test needs more guest memory than there is."""


class _Region:
    """One memfd, mapped. The region begins in the file at `offset`."""

    def __init__(self, guest_addr: int, size: int, offset: int = 0) -> None:
        self.guest_addr = guest_addr
        self.size = size
        self.offset = offset
        self.next_free = guest_addr
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + size)
        self._map = mmap.mmap(self.fd, offset + size)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8, size, offset)

    def describe(self) -> MemoryRegion:
        return MemoryRegion(
            self.guest_addr, self.size, self.guest_addr + _USER_BASE, self.offset, self.fd
        )


class Memory:
    """All regions; allocation never frees, and never spans two regions."""

    def __init__(self, layout: Sequence[tuple[int, int]] = DEFAULT_LAYOUT) -> None:
        """Create regions of (guest address, size)."""
        # All regions except the first have an offset in the file, as when regions share one file.
        self._regions = [
            _Region(guest_addr, size, mmap.PAGESIZE if number else 0)
            for number, (guest_addr, size) in enumerate(layout)
        ]

    def add_region(self, guest_addr: int, size: int) -> MemoryRegion:
        """Add a region."""
        region = _Region(guest_addr, size)
        self._regions.append(region)
        return region.describe()

    def describe(self) -> list[MemoryRegion]:
        """Return the regions for SET_MEM_TABLE; this object keeps the descriptors."""
        return [region.describe() for region in self._regions]

    @staticmethod
    def user_addr(guest_addr: int) -> int:
        """Translate to the front-end's own address space."""
        return guest_addr + _USER_BASE

    def allocate(self, size: int, align: int = 16, region: int | None = None) -> int:
        """Return the guest address of `size` zeroed bytes, in any region or in a given one."""
        candidates = self._regions if region is None else [self._regions[region]]
        for candidate in reversed(candidates):
            start = -(-candidate.next_free // align) * align
            if start + size <= candidate.guest_addr + candidate.size:
                candidate.next_free = start + size
                return start
        raise OutOfMemoryError(f"{size} bytes")

    def view(self, guest_addr: int, size: int) -> NDArray[np.uint8]:
        """Return a writable view of `size` bytes at a guest address."""
        for region in self._regions:
            start = guest_addr - region.guest_addr
            if 0 <= start <= region.size - size:
                return region.bytes[start : start + size]
        raise IndexError(f"guest address {guest_addr:#x}+{size:#x}")

    def read(self, guest_addr: int, size: int) -> bytes:
        """Copy bytes out."""
        return self.view(guest_addr, size).tobytes()

    def write(self, guest_addr: int, data: bytes) -> None:
        """Copy bytes in."""
        self.view(guest_addr, len(data))[:] = np.frombuffer(data, np.uint8)

    def content(self) -> list[bytes]:
        """Return a copy of all memory, for `bring_back`."""
        return [region.bytes.tobytes() for region in self._regions]

    def take_away(self) -> list[bytes]:
        """Remove all pages; return their content for `bring_back`."""
        content = self.content()
        for region in self._regions:
            os.ftruncate(region.fd, 0)
            os.ftruncate(region.fd, region.offset + region.size)
        return content

    def truncate(self) -> None:
        """Truncate the files to length 0, as a hostile front-end may do."""
        for region in self._regions:
            os.ftruncate(region.fd, 0)

    @property
    def untouched(self) -> bool:
        """Whether there are still no pages; reads create pages, too."""
        return not any(os.fstat(region.fd).st_blocks for region in self._regions)

    def bring_back(self, content: Sequence[bytes]) -> None:
        """Restore the content of the time when `content` or `take_away` was called."""
        for region, data in zip(self._regions, content, strict=True):
            region.bytes[:] = np.frombuffer(data, np.uint8)

    def close(self) -> None:
        """Close the files; memory is unmapped with the last view."""
        for region in self._regions:
            os.close(region.fd)
        self._regions = []
