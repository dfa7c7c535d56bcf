# SPDX-License-Identifier: Apache-2.0
"""`RequestBatch`: a burst of descriptor chains, taken from a ring and validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vhostblk.virtqueue.memory import GuestMemory


@dataclass(slots=True)
class RequestBatch:
    """`n` chains and the `m` memory segments of all of them, in one private copy.

    Chain `i` owns segments `first[i]` to `first[i] + count[i]` of `iovs`; the first `readable[i]`
    of these are device-readable, the others device-writable. Chains whose `faults[i]` is not 0 must
    not be served. Their segments before the violation are included, so that a status can still be
    written.
    """

    #: uint16 (n,): the used ring's ids.
    heads: NDArray[np.uint16]
    #: uint8 (n,): `ChainFault`.
    faults: NDArray[np.uint8]
    #: int64 (n,).
    first: NDArray[np.int64]
    #: int64 (n,).
    count: NDArray[np.int64]
    #: int64 (n,).
    readable: NDArray[np.int64]
    #: `IOVEC` (m,): host addresses; the base is 0 if a segment is not mapped.
    iovs: NDArray[np.void]
    #: The memory table, which keeps the segments mapped.
    memory: GuestMemory
    #: The length of the chains, if all have the same length and no fault; otherwise 0.
    alike: int = 0

    def __len__(self) -> int:
        return len(self.heads)
