# SPDX-License-Identifier: Apache-2.0
"""What a transport says of guest memory, of rings, and of memory that outlives the process.

The names in quotes are those of sections in the vhost-user specification.
"""

from __future__ import annotations

import msgspec

#: GET_MAX_MEM_SLOTS: as many as libvhost-user takes.
MAX_MEM_SLOTS = 509


class RegionDescription(msgspec.Struct, frozen=True):
    """A memory region as the front-end describes it ("Memory region description").

    `fd` is the file behind it, to be mapped from `mmap_offset`. Addresses and sizes are in bytes.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int


class VringConfig(msgspec.Struct, frozen=True):
    """A vring as it starts: addresses are front-end user addresses ("A vring address description").

    `next_avail` is the index of the next available-ring entry to process; with `packed` rings,
    where to go on taking and using, as SET_VRING_BASE has it: 32 bits. Writes to the used ring are
    noted in the dirty log as if it were at the guest address `log_addr`; None: they are not.
    """

    index: int
    size: int
    desc_addr: int
    avail_addr: int
    used_addr: int
    next_avail: int
    log_addr: int | None = None
    packed: bool = False


class InflightDescription(msgspec.Struct, frozen=True):
    """Memory in which a back-end notes the requests in flight ("Inflight description").

    It has a part for each of `num_queues` queues of `queue_size` entries, and lies in the file `fd`
    at `mmap_offset`, `mmap_size` bytes.
    """

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    fd: int


class LogDescription(msgspec.Struct, frozen=True):
    """A migration's dirty log ("Log description"): `mmap_size` bytes of `fd` at `mmap_offset`."""

    mmap_size: int
    mmap_offset: int
    fd: int
