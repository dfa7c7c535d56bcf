# SPDX-License-Identifier: Apache-2.0
"""A transport's descriptions of guest memory, of rings, and of memory that outlives the process.

Names in quotes are those of sections of the vhost-user specification.
"""

from __future__ import annotations

import msgspec

#: GET_MAX_MEM_SLOTS: the limit of libvhost-user.
MAX_MEM_SLOTS = 509


class RegionDescription(msgspec.Struct, frozen=True):
    """A memory region as the front-end describes it ("Memory region description").

    `fd` is the file to map, from `mmap_offset` on. Addresses and sizes are in bytes.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int


class VringConfig(msgspec.Struct, frozen=True):
    """A vring that starts: addresses are front-end user addresses ("A vring address description").

    `next_avail` is the index of the next available-ring entry to process; with `packed` rings, it
    is the 32-bit value of SET_VRING_BASE, with the places of the next available and used
    descriptors. Writes to the used ring are logged in the dirty log as if the ring were at the
    guest address `log_addr`; None: they are not logged.
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
    """Memory in which a back-end records the requests in flight ("Inflight description").

    It has a part for each of `num_queues` queues of `queue_size` entries. It is at `mmap_offset` in
    the file `fd`, and has `mmap_size` bytes.
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
