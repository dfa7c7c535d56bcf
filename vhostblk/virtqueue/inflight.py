# SPDX-License-Identifier: Apache-2.0
"""Which requests of a split queue are in flight, noted in memory that outlives this process.

Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking".
The process may be killed between any two of them. What matters then is the order of instructions
alone, for the memory and the rings stay, and the next process sees every store made before.

- A head is noted, in the order of the avail ring, before anything is done for it. Those noted are
  therefore the first of those made available, and the next one to take is the one behind them.
- Completed heads are linked into a list (`last_batch_head`, `next`) before the used index shows
  them to the driver, and struck out after it. In between, the difference between the ring's index
  and `used_idx` tells how many of the list were shown.

A request that was done but not yet shown is done once more by the next process. The driver has not
seen an answer, hence can't have made another request that depends on it.

What the memory says is read once, when the queue starts, and judged as anything from a peer.
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

    `used_idx` is the used ring's index. Raises InflightError on a record that can't be true.
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
        #: The number that the next head gets.
        self.counter = 0
        #: Heads that an earlier process left in flight, in the order in which it took them.
        self.left = self._reconcile(part.queue_size, size, used_idx)

    @property
    def address(self) -> int:
        """Where the record is."""
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
        """Strike out the last `count` heads of the list: the driver has seen them used."""
        head = self._last_batch_head
        for _ in range(count):
            if head >= size:
                raise InflightError(f"head {head} in a queue of {size}")
            self._desc["inflight"][head] = 0
            head = int(self._desc["next"][head])

    def take(self, heads: NDArray[np.uint16]) -> None:
        """Note heads, before anything else is done with them."""
        count = len(heads)
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(self.counter)
        self._desc["counter"][heads] = numbers
        self._desc["inflight"][heads] = 1  # one after the other, in this order
        self.counter = (self.counter + count) & 0xFFFF_FFFF_FFFF_FFFF

    def link(self, heads: NDArray[np.uint16]) -> None:
        """Put completed heads into the list, before the used index shows them."""
        following = np.empty_like(heads)
        following[0] = self._last_batch_head
        following[1:] = heads[:-1]
        self._desc["next"][heads] = following
        self._last_batch_head = int(heads[-1])
        self._header["last_batch_head"] = self._last_batch_head

    def strike_out(self, heads: NDArray[np.uint16], used_idx: int) -> None:
        """Strike out completed heads, after the used index has become `used_idx`."""
        self._desc["inflight"][heads] = 0
        self._header["used_idx"] = used_idx
