# SPDX-License-Identifier: Apache-2.0
"""The record of a split queue's requests in flight, in memory that outlives this process.

Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking".
The process may be killed between any two stores. Only the order of instructions matters then: the
memory and the rings stay, and the next process sees all earlier stores.

- A head is recorded, in the order of the avail ring, before anything else is done for it. So the
  recorded heads are the first available ones, and the next head to take follows them.
- Completed heads are linked into a list (`last_batch_head`, `next`) before the used index shows
  them to the driver, and removed from the record after it. In between, the difference between the
  ring's index and `used_idx` is the number of heads in the list that were shown.

If a request was done but not yet shown, the next process does it again. This is correct: the driver
has not seen the completion, so no other request can depend on it.

The memory is read once, when the queue starts, and validated like all data from a peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.errors import InflightError
from vhostblk.virtqueue.layout import (
    INFLIGHT_DESC_SPLIT,
    INFLIGHT_HEADER_SPLIT,
    INFLIGHT_VERSION,
    inflight_split_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.virtqueue.inflight_area import InflightPart


class SplitInflight:
    """The record of one split queue of `size` entries.

    `used_idx` is the used ring's index. Raises InflightError for an inconsistent record.
    """

    def __init__(self, part: InflightPart, size: int, used_idx: int) -> None:
        if inflight_split_bytes(size) > part.size:
            raise InflightError(f"{part.size} bytes have no room for {size} descriptors")
        self._part = part
        raw = np.frombuffer(view_memory(part.address, part.size), np.uint8)
        header = INFLIGHT_HEADER_SPLIT.itemsize
        self._header = raw[:header].view(INFLIGHT_HEADER_SPLIT)
        end = header + size * INFLIGHT_DESC_SPLIT.itemsize
        self._desc = raw[header:end].view(INFLIGHT_DESC_SPLIT)
        self._last_batch_head = 0
        #: The number of the next head.
        self.counter = 0
        #: Heads that an earlier process left in flight, in the order in which it took them.
        self.left = self._reconcile(part.queue_size, size, used_idx)

    @property
    def address(self) -> int:
        """The address of the record."""
        return self._part.address

    def _reconcile(self, queue_size: int, size: int, used_idx: int) -> NDArray[np.uint16]:
        header = self._header[0].copy()
        version = int(header["version"])
        if version not in (0, INFLIGHT_VERSION) or header["features"] != 0:
            raise InflightError(f"record of version {version}, features {header['features']:#x}")
        if version == 0:
            self._desc["inflight"] = 0
            self._header["desc_num"] = queue_size
            self._header["last_batch_head"] = 0
            self._header["used_idx"] = used_idx
            self._header["version"] = INFLIGHT_VERSION
            return np.empty(0, np.uint16)
        if header["desc_num"] != queue_size:
            raise InflightError(
                f"record of {header['desc_num']} descriptors in one of {queue_size}"
            )
        self._last_batch_head = int(header["last_batch_head"])
        shown = (used_idx - int(header["used_idx"])) & 0xFFFF
        if shown > size:
            raise InflightError(f"{shown} descriptors used at once in a queue of {size}")
        self._strike_out(shown, size)
        self._header["used_idx"] = used_idx

        noted = self._desc.copy()
        heads = np.flatnonzero(noted["inflight"] == 1)
        counters = noted["counter"][heads]
        if len(heads):
            self.counter = (int(counters.max()) + 1) & 0xFFFF_FFFF_FFFF_FFFF
        return heads[np.argsort(counters, kind="stable")].astype(np.uint16)

    def _strike_out(self, count: int, size: int) -> None:
        """Remove the last `count` heads of the list, which the driver has seen as used."""
        head = self._last_batch_head
        for _ in range(count):
            if head >= size:
                raise InflightError(f"head {head} in a queue of {size}")
            self._desc["inflight"][head] = 0
            head = int(self._desc["next"][head])

    def take(self, heads: NDArray[np.uint16]) -> None:
        """Record heads, before anything else is done with them."""
        count = len(heads)
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(self.counter)
        self._desc["counter"][heads] = numbers
        self._desc["inflight"][heads] = 1  # one store after the other, in this order
        self.counter = (self.counter + count) & 0xFFFF_FFFF_FFFF_FFFF

    def link(self, heads: NDArray[np.uint16]) -> None:
        """Add completed heads to the list, before the used index shows them."""
        following = np.empty_like(heads)
        following[0] = self._last_batch_head
        following[1:] = heads[:-1]
        self._desc["next"][heads] = following
        self._last_batch_head = int(heads[-1])
        self._header["last_batch_head"] = self._last_batch_head

    def strike_out(self, heads: NDArray[np.uint16], used_idx: int) -> None:
        """Remove completed heads, after the used index has become `used_idx`."""
        self._desc["inflight"][heads] = 0
        self._header["used_idx"] = used_idx
