# SPDX-License-Identifier: Apache-2.0
"""What the requests of one queue on the Python lane write to guest memory, noted in a dirty log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.io.iovec import IoVec
from vhostblk.virtio_blk.layout import APPEND_SECTOR_BYTES, RequestType
from vhostblk.virtio_blk.request import PENDING

if TYPE_CHECKING:
    from vhostblk.virtio_blk.request import BlockRequests
    from vhostblk.virtio_blk.runner import Completed
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog

_ZONE_APPEND = int(RequestType.ZONE_APPEND)
_INTO_GUEST = (
    *map(int, (RequestType.IN, RequestType.GET_ID, RequestType.GET_LIFETIME)),
    *(int(RequestType.ZONE_REPORT), _ZONE_APPEND),
)


class WrittenMemory:
    """Remembers where requests will put their data, and notes it when they have."""

    def __init__(self, log: QueueLog) -> None:
        self._log = log
        self._buffers: dict[int, IoVec] = {}

    def begin(self, requests: BlockRequests) -> None:
        """Take note of a burst that is about to start."""
        records, iovs, address, owner = requests
        chosen = (records["status"] == PENDING) & np.isin(records["type"], _INTO_GUEST)
        for record in records[chosen]:
            first, count = int(record["iov_first"]), int(record["iov_count"])
            buffer = IoVec(iovs, first, count, int(record["length"]), address + 16 * first, owner)
            if record["type"] == _ZONE_APPEND:
                buffer = buffer.slice(buffer.nbytes - APPEND_SECTOR_BYTES, buffer.nbytes)
            self._buffers[int(record["head"])] = buffer

    def end(self, completed: Completed, memory: GuestMemory) -> None:
        """Note what has been written: the statuses, and the data of requests that read.

        Of a read that failed any part may have been written.
        """
        statuses = completed.status_addrs[completed.status_addrs != 0]
        self._log.mark_host(memory, statuses, np.ones(len(statuses), np.uint64))
        for head, written, status in zip(
            completed.heads.tolist(),
            completed.written.tolist(),
            completed.statuses.tolist(),
            strict=True,
        ):
            buffer = self._buffers.pop(head, None)
            if buffer is not None:
                end = buffer.nbytes if status else min(written, buffer.nbytes)
                segments = buffer.slice(0, end).segments
                self._log.mark_host(memory, segments["base"], segments["len"])
