# SPDX-License-Identifier: Apache-2.0
"""Walking descriptor chains, a whole burst at once.

All chains are walked together. Each step gathers the current descriptors of all chains that have
not ended, with a single fancy index over guest memory. So the number of array operations depends on
the longest chain, and not on the number of chains. Direct and indirect tables are handled in the
same way: a chain is at descriptor `current` of a table of `entries` at host address `table`, and an
INDIRECT descriptor changes the table. Chains of plain descriptors that end in an indirect one are
legal (VIRTIO 1.3, 2.7.5.3.2).

The gathered descriptors are the private copy: each descriptor is read from guest memory once, and
the copy is validated and used. Later changes by the guest have no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.engine.layouts import IOVEC
from vhostblk.virtqueue.alike import walk_alike
from vhostblk.virtqueue.batch import RequestBatch
from vhostblk.virtqueue.errors import ChainFault
from vhostblk.virtqueue.layout import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.memory import GuestMemory

#: Maximum length of chains and of indirect tables: Linux's UIO_MAXIOV, as in QEMU. It also applies
#: to longer queues, because all chains of a burst may share one long run of descriptors.
MAX_CHAIN = 1024

#: Maximum number of regions of one buffer. Two are normal: a buffer across two memory modules.
MAX_PIECES = 8


class _Walk:
    """The results of the steps of one burst."""

    def __init__(self, count: int) -> None:
        self.faults = np.zeros(count, np.uint8)
        self.lengths = np.zeros(count, np.int64)
        self.steps: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.void]]] = []

    def record(self, chains: NDArray[np.int64], descriptors: NDArray[np.void]) -> None:
        ordinals = self.lengths.take(chains)
        self.steps.append((chains, ordinals, descriptors))
        self.lengths[chains] = ordinals + 1


def walk(
    heads: NDArray[np.uint16], table_addr: int, queue_size: int, memory: GuestMemory
) -> RequestBatch:
    """Walk the chains that start at `heads`, each below `queue_size`.

    `table_addr` is the descriptor table's host address, a valid range of `queue_size` descriptors.
    Never raises for data of a guest: broken chains get a fault.
    """
    alike = walk_alike(heads, table_addr, queue_size, memory)
    if alike is not None:
        return alike
    return walk_any(heads, table_addr, queue_size, memory)


def walk_any(
    heads: NDArray[np.uint16], table_addr: int, queue_size: int, memory: GuestMemory
) -> RequestBatch:
    """Walk chains like `walk`, without the shortcut."""
    walked = _step_all(heads, table_addr, queue_size, memory)
    descriptors, first, owners = _flatten(walked)
    return translate_chains(
        heads, walked.faults, walked.lengths, descriptors, first, owners, memory
    )


def _step_all(
    heads: NDArray[np.uint16], table_addr: int, queue_size: int, memory: GuestMemory
) -> _Walk:
    walked = _Walk(len(heads))
    # Every byte of guest memory could be the start of a descriptor.
    anywhere = np.ndarray((memory.span.size - DESC.itemsize + 1,), DESC, memory.span, 0, (1,))

    chains = np.arange(len(heads))
    current = heads.astype(np.int64)
    table = np.full(len(heads), table_addr - memory.span_base)
    entries = np.full(len(heads), queue_size)
    indirect = np.zeros(len(heads), np.bool_)

    while len(chains):
        descriptors = anywhere[table + current * DESC.itemsize]
        flags = descriptors["flags"]
        follow = descriptors["next"].astype(np.int64)
        ends = (flags & DESC_F_NEXT) == 0

        jumps = (flags & DESC_F_INDIRECT) != 0
        if jumps.any():
            faults, tables = _enter_indirect(descriptors, jumps, indirect, memory)
            table = np.where(jumps, tables, table)
            entries = np.where(jumps, (descriptors["len"] // DESC.itemsize), entries)
            follow[jumps] = 0
            ends &= ~jumps
            indirect |= jumps
            walked.faults[chains] = faults
            if not jumps.all():
                plain = ~jumps
                walked.record(chains[plain], descriptors[plain])
        else:
            faults = walked.faults.take(chains)
            walked.record(chains, descriptors)

        goes_on = ~ends & (faults == 0)
        outside = goes_on & (follow >= entries)
        too_long = goes_on & (walked.lengths.take(chains) >= MAX_CHAIN)
        if outside.any() or too_long.any():
            walked.faults[chains[outside]] = ChainFault.NEXT_OUT_OF_RANGE
            walked.faults[chains[too_long]] = ChainFault.TOO_LONG
            goes_on &= ~(outside | too_long)
        if goes_on.all():
            current = follow
        else:
            chains, current = chains[goes_on], follow[goes_on]
            table, entries, indirect = table[goes_on], entries[goes_on], indirect[goes_on]
    return walked


def _enter_indirect(
    descriptors: NDArray[np.void],
    jumps: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    memory: GuestMemory,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Check INDIRECT descriptors (where `jumps`); return faults and the tables' places in span."""
    lengths = descriptors["len"].astype(np.uint64)
    tables = memory.translate(descriptors["addr"], lengths)
    size = DESC.itemsize
    faults = np.zeros(len(descriptors), np.uint8)
    faults[jumps & (tables == 0)] = ChainFault.INDIRECT_UNMAPPED
    bad_length = (lengths == 0) | (lengths % size != 0) | (lengths > MAX_CHAIN * size)
    faults[jumps & bad_length] = ChainFault.INDIRECT_LENGTH
    nested = inside | ((descriptors["flags"] & DESC_F_NEXT) != 0)
    faults[jumps & nested] = ChainFault.INDIRECT_NESTED
    return faults, tables.astype(np.int64) - memory.span_base


def _flatten(
    walked: _Walk,
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """Sort the descriptors by chain; return them, the first of each chain, the chain of each."""
    ends = np.cumsum(walked.lengths)
    first = ends - walked.lengths
    flat = np.empty(int(ends[-1]), DESC)
    owners = np.empty(len(flat), np.int64)
    for chains, ordinals, descriptors in walked.steps:
        places = first.take(chains) + ordinals
        flat[places] = descriptors
        owners[places] = chains
    return flat, first, owners


def translate_chains(
    heads: NDArray[np.uint16],
    faults: NDArray[np.uint8],
    count: NDArray[np.int64],
    descriptors: NDArray[np.void],
    first: NDArray[np.int64],
    owners: NDArray[np.int64],
    memory: GuestMemory,
) -> RequestBatch:
    """Convert descriptors to host segments; find segments that are not mapped, or out of order.

    Chain `i` has `count[i]` of the descriptors, from `first[i]` on; `owners` names the chain of
    each.
    """
    writable = (descriptors["flags"] & DESC_F_WRITE) != 0
    iovs = np.empty(len(descriptors), IOVEC)
    iovs["len"] = descriptors["len"]
    iovs["base"] = memory.translate(descriptors["addr"], iovs["len"])

    missing = (iovs["base"] == 0) & (iovs["len"] != 0)
    if missing.any():
        iovs, owners, writable = _mend(descriptors, missing, iovs, owners, writable, memory)
        count = np.bincount(owners, minlength=len(heads))
        first = np.cumsum(count) - count
        unmapped = (iovs["base"] == 0) & (iovs["len"] != 0)
        faults[owners[unmapped]] = ChainFault.UNMAPPED

    backwards = writable[:-1] & ~writable[1:] & (owners[:-1] == owners[1:])
    if backwards.any():
        places = np.flatnonzero(backwards)[::-1] + 1
        broken = owners[places]
        faults[broken] = ChainFault.ORDER
        # Of several violations in a chain, the last assigned one counts, which is the first one.
        count[broken] = places - first[broken]
        kept = np.arange(len(owners)) - first[owners] < count[owners]
        owners, writable = owners[kept], writable[kept]
    readable = count - np.bincount(owners[writable], minlength=len(heads))
    return RequestBatch(heads, faults, first, count, readable, iovs, memory)


def _mend(
    descriptors: NDArray[np.void],
    missing: NDArray[np.bool_],
    iovs: NDArray[np.void],
    owners: NDArray[np.int64],
    writable: NDArray[np.bool_],
    memory: GuestMemory,
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.bool_]]:
    """Split buffers that cross region boundaries into one segment for each region.

    Each step splits off the next piece of all such buffers. Buffers with a hole are not split.
    """
    places = np.flatnonzero(missing)
    addr, left = descriptors["addr"][places], iovs["len"][places]
    whole = missing.copy()
    steps: list[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]] = []
    while len(places):
        host, room = memory.reach(addr)
        taken = np.minimum(left, room)
        steps.append((places, host, taken))
        addr, left = addr + taken, left - taken
        # Here an address of 0 is the end of the address space, not its beginning.
        stuck = (left > 0) & ((taken == 0) | (addr == 0) | (len(steps) == MAX_PIECES))
        whole[places[stuck]] = False
        goes_on = (left > 0) & ~stuck
        places, addr, left = places[goes_on], addr[goes_on], left[goes_on]

    owner_of_piece, host, taken = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.argsort(owner_of_piece, kind="stable")
    order = order[whole[owner_of_piece[order]]]
    repeats = np.ones(len(iovs), np.int64)
    repeats[whole] = np.bincount(owner_of_piece[order], minlength=len(iovs))[whole]
    mended, split = iovs.repeat(repeats), whole.repeat(repeats)
    mended["base"][split] = host[order]
    mended["len"][split] = taken[order]
    return mended, owners.repeat(repeats), writable.repeat(repeats)
