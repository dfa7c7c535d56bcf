# SPDX-License-Identifier: Apache-2.0
"""The shared memory for records of requests in flight ("Inflight I/O tracking").

The front-end keeps it when this process dies and another one starts. Each queue has a part of it;
`vhostblk.virtqueue.inflight` defines the content of a part.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from vhostblk.virtqueue.config import InflightDescription
from vhostblk.virtqueue.errors import InflightError
from vhostblk.virtqueue.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.virtqueue.mapping import LossSignal

#: Alignment of parts: a cache line, as in libvhost-user.
_ALIGN = 64

#: Minimum number of entries of a part. QEMU 10 sometimes asks for its default queue size, 128, and
#: then starts rings of 256.
_MIN_ENTRIES = 1024


def _part_bytes(bytes_for: Callable[[int], int], queue_size: int) -> int:
    return -(-bytes_for(queue_size) // _ALIGN) * _ALIGN


def make_inflight(
    num_queues: int, queue_size: int, bytes_for: Callable[[int], int]
) -> InflightDescription:
    """Create an area of zeroes, which means that no request is in flight.

    `bytes_for(queue_size)` is the length of one queue's part. Raises OSError.
    """
    size = num_queues * _part_bytes(bytes_for, max(queue_size, _MIN_ENTRIES))
    fd = os.memfd_create("vhostblk-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return InflightDescription(size, 0, num_queues, queue_size, fd)


class InflightPart:
    """One queue's part: `size` bytes at `address`, mapped during the object's lifetime.

    `queue_size` is the number of descriptors that the front-end has asked for; there may be room
    for more.
    """

    def __init__(self, mapping: Mapping, address: int, size: int, queue_size: int) -> None:
        self._mapping = mapping
        self.address = address
        self.size = size
        self.queue_size = queue_size


class InflightArea:
    """A front-end's area, mapped.

    Raises SetupError if mapping fails; the caller keeps the descriptor.
    """

    def __init__(self, described: InflightDescription, loss: LossSignal | None = None) -> None:
        self._described = described
        if described.mmap_size == 0:
            raise InflightError("area of 0 bytes")
        self._mapping = Mapping(
            described.fd, described.mmap_offset, described.mmap_size, "inflight area", loss
        )

    def part(self, index: int, bytes_for: Callable[[int], int]) -> InflightPart | None:
        """Return the part of queue `index`, None if there is none; raises InflightError."""
        described = self._described
        if index >= described.num_queues:
            return None
        size = described.mmap_size // described.num_queues // _ALIGN * _ALIGN
        if size < bytes_for(described.queue_size):
            raise InflightError(
                f"area of {described.mmap_size} bytes for {described.num_queues} queues of "
                f"{described.queue_size}"
            )
        address = self._mapping.address + index * size
        if address % 8:
            raise InflightError(f"area at offset {described.mmap_offset}, not a multiple of 8")
        return InflightPart(self._mapping, address, size, described.queue_size)

    def check(self, bytes_for: Callable[[int], int]) -> None:
        """Raise InflightError if the area is too small for its queues."""
        self.part(self._described.num_queues - 1, bytes_for)
