# SPDX-License-Identifier: Apache-2.0
"""The walker's shortcut for bursts of similar chains.

A driver mostly has requests of one kind in flight: their chains have the same length, and consist
of consecutive entries of indirect tables, or of plain descriptors. Such a burst is one matrix,
(chains, length), and needs a third of the general walk's array operations. For all other bursts,
and for faulty chains, the descriptors are read again by the general walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.engine.layouts import IOVEC
from vhostblk.virtqueue.batch import RequestBatch
from vhostblk.virtqueue.layout import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.memory import GuestMemory

#: Maximum length of chains. For longer chains the shortcut gains less, and may waste more work.
MAX_DIRECT = 8
MAX_INDIRECT = 64


def walk_alike(
    heads: NDArray[np.uint16], table_addr: int, queue_size: int, memory: GuestMemory
) -> RequestBatch | None:
    """Walk chains like `walker.walk` if they are similar and without faults; else return None."""
    base = table_addr - memory.span_base
    places = base + heads.astype(np.int64) * DESC.itemsize
    descriptors: NDArray[np.void] = _anywhere(memory, DESC)[places]
    if int(np.bitwise_and.reduce(descriptors["flags"])) & DESC_F_INDIRECT:
        chains = _tables(descriptors, memory)
    else:
        chains = _direct(descriptors, base, queue_size, memory)
    return None if chains is None else batch_alike(heads, chains, memory)


def _anywhere(memory: GuestMemory, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return a view with a `dtype` at every byte of guest memory, an array (places,)."""
    places = max(memory.span.size - dtype.itemsize + 1, 0)
    return np.ndarray((places,), dtype, memory.span, 0, (1,))


def _direct(
    descriptors: NDArray[np.void], base: int, queue_size: int, memory: GuestMemory
) -> NDArray[np.void] | None:
    """Follow chains of plain descriptors; return them, (chains, length)."""
    anywhere = _anywhere(memory, DESC)
    steps = [descriptors]
    while True:
        flags = descriptors["flags"]
        some, each = int(np.bitwise_or.reduce(flags)), int(np.bitwise_and.reduce(flags))
        if some & DESC_F_INDIRECT:
            return None
        if not some & DESC_F_NEXT:
            break
        follow = descriptors["next"].astype(np.int64)
        if not each & DESC_F_NEXT or len(steps) == MAX_DIRECT or int(follow.max()) >= queue_size:
            return None
        descriptors = anywhere[base + follow * DESC.itemsize]
        steps.append(descriptors)
    chains = np.empty((len(descriptors), len(steps)), DESC)
    for place, step in enumerate(steps):
        chains[:, place] = step
    return chains


def read_tables(descriptors: NDArray[np.void], memory: GuestMemory) -> NDArray[np.void] | None:
    """Read the indirect tables that descriptors name; return them, (chains, length).

    They have the same format as the descriptors. None: they differ in length, or have a fault.
    """
    nbytes = int(descriptors["len"][0])
    if (
        not 0 < nbytes <= MAX_INDIRECT * DESC.itemsize
        or nbytes % DESC.itemsize
        or (descriptors["len"] != nbytes).any()
    ):
        return None
    tables = memory.translate(descriptors["addr"], descriptors["len"].astype(np.uint64))
    if not tables.all():
        return None
    places = tables.astype(np.int64) - memory.span_base
    table = np.dtype((np.void, nbytes))
    raw = _anywhere(memory, table)[places]
    return raw.view(descriptors.dtype).reshape(-1, nbytes // DESC.itemsize)


def _tables(descriptors: NDArray[np.void], memory: GuestMemory) -> NDArray[np.void] | None:
    """Read indirect tables whose entries follow one another; return them, (chains, length)."""
    if int(np.bitwise_or.reduce(descriptors["flags"])) & DESC_F_NEXT:
        return None
    chains = read_tables(descriptors, memory)
    if chains is None:
        return None
    count = chains.shape[1]
    flags = chains["flags"]
    some = np.bitwise_or.reduce(flags, axis=0)
    each = np.bitwise_and.reduce(flags, axis=0)
    if (
        (some & DESC_F_INDIRECT).any()
        or not (each[:-1] & DESC_F_NEXT).all()
        or some[-1] & DESC_F_NEXT
        or (chains["next"][:, :-1] != np.arange(1, count, dtype=np.uint16)).any()
    ):
        return None
    return chains


def batch_alike(
    heads: NDArray[np.uint16], chains: NDArray[np.void], memory: GuestMemory
) -> RequestBatch | None:
    """Convert descriptors to host segments, if all are mapped in one piece and in order."""
    number, length = chains.shape
    flat = chains.reshape(-1)
    iovs = np.empty(len(flat), IOVEC)
    iovs["len"] = flat["len"]
    iovs["base"] = memory.translate(flat["addr"], iovs["len"])
    if not iovs["base"].all():
        return None
    writable = (chains["flags"] & DESC_F_WRITE) != 0
    if (writable[:, :-1] & ~writable[:, 1:]).any():
        return None
    return RequestBatch(
        heads,
        np.zeros(number, np.uint8),
        np.arange(0, len(flat), length),
        np.full(number, length),
        length - writable.sum(axis=1),
        iovs,
        memory,
        alike=length,
    )
