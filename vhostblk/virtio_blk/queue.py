# SPDX-License-Identifier: Apache-2.0
"""One queue of a virtio block device on the Python lane: kicks in, completions out.

Everything runs on the event loop's thread. A *sweep* takes one burst from the ring, starts all its
requests, and publishes whatever has completed by then in one go (see `runner`). While sweeps find
work the driver is asked not to kick; a sweep that finds none asks for kicks again and looks once
more. Between two sweeps the loop turns, so that queues share it fairly and completions come in.

`vhostblk.virtio_blk.contract` has the states of a queue.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.io.completion import resolve_all
from vhostblk.trace import points as trace
from vhostblk.virtio_blk.base import BaseQueue
from vhostblk.virtio_blk.request import parse
from vhostblk.virtio_blk.runner import Completed, RequestRunner
from vhostblk.virtio_blk.statistics import Counters
from vhostblk.virtio_blk.written import WrittenMemory
from vhostblk.virtqueue import eventfd
from vhostblk.virtqueue.errors import BrokenRingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.engine.extents import ExtentMap
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtqueue.queue_log import QueueLog
    from vhostblk.virtqueue.ring import Ring

#: How often a ring without a kick descriptor is looked at, in seconds.
POLL_INTERVAL = 0.0005

#: Most requests taken in one sweep, so that a long queue can't keep the loop from the others.
BURST = 256


class BlkQueue(BaseQueue):
    """A started queue. `kick_fd` belongs to it until it stops."""

    in_flight = 0

    def __init__(
        self,
        index: int,
        ring: Ring,
        device: BlkDevice,
        kick_fd: int | None,
        log: RateLimitedLogger,
    ) -> None:
        super().__init__(index, ring, device, kick_fd, log)
        self._call_fd: int | None = None
        self._err_fd: int | None = None
        self._loop = asyncio.get_running_loop()
        self._holds = 0
        self._broken = False
        self._stopped = False
        self._sweep_handle: asyncio.Handle | None = None
        self._counters = Counters()
        self._runner = RequestRunner(device, log, self._publish, self._counters)
        #: Take only requests that an earlier process left in flight.
        self._left_only = False
        #: Notes what requests write, while that is wanted.
        self._written: WrittenMemory | None = None

    # The life of the queue.

    def start(self) -> None:
        """Listen for kicks, and look at what is available already."""
        if self._kick_fd is not None:
            self._loop.add_reader(self._kick_fd, self._kicked)
        self._schedule_sweep()

    async def stop(self) -> int:
        """Take no more requests, finish those in flight; return the base to go on from."""
        self._stopped = True
        if self._kick_fd is not None:
            self._loop.remove_reader(self._kick_fd)
        self._close_kick()
        self._cancel_sweep()
        await self.wait_idle()
        self._runner.close()
        return self._ring.base

    def hold(self) -> None:
        """Take no more requests until `release`; holds add up."""
        self._holds += 1
        self._cancel_sweep()

    def release(self) -> None:
        """Undo one `hold`."""
        self._holds -= 1
        if not self._holds:
            self._schedule_sweep()

    def limit_to_left(self) -> int:
        """Take only requests that an earlier process left in flight, from now on.

        Return how many of them have not been taken yet.
        """
        self._left_only = True
        return 0 if self._broken else len(self._ring.left)

    def set_log(self, log: QueueLog | None) -> None:
        """Note what is written to guest memory, or not; held and idle, or just made."""
        self._ring.set_log(log)
        self._written = None
        if log is not None and log.data:
            self._written = WrittenMemory(log)

    def set_extents(self, extents: ExtentMap | None) -> None:
        """Ignore the map: on this lane everything is asked."""

    def statistics(self) -> NDArray[np.void]:
        """Return what was counted since the start, a `STATS` array of shape (1,)."""
        return self._counters.snapshot()

    @property
    def broken(self) -> bool:
        """Tell whether the ring made no sense."""
        return self._broken

    def refresh(self) -> None:
        """Do nothing: size and cache mode are looked at with every request."""

    def set_call(self, fd: int | None) -> None:
        """Set the descriptor that notifies the guest; the caller closes the former one.

        Notifies at once: the change may have swallowed a notification.
        """
        self._call_fd = fd
        if fd is not None:
            eventfd.signal(fd)

    def set_err(self, fd: int | None) -> None:
        """Set the descriptor that tells the front-end of a broken ring."""
        self._err_fd = fd

    # Taking requests.

    def _kicked(self) -> None:
        if self._kick_fd is not None:
            eventfd.clear(self._kick_fd)
            self._counters.kicks += 1
        self._sweep()

    def _schedule_sweep(self) -> None:
        if self._sweep_handle is None and not (self._stopped or self._holds or self._broken):
            self._sweep_handle = self._loop.call_soon(self._sweep)

    def _cancel_sweep(self) -> None:
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    def _sweep(self) -> None:
        self._cancel_sweep()
        if self._stopped or self._holds or self._broken:
            return
        ring = self._ring
        if self._left_only and not len(ring.left):
            return
        ring.disable_notifications()
        try:
            batch = ring.pop(BURST)
        except BrokenRingError as error:
            self._break(error)
            return
        if batch is None:
            ring.enable_notifications()
            if ring.has_available():
                self._schedule_sweep()
            elif self._kick_fd is None:
                self._sweep_handle = self._loop.call_later(POLL_INTERVAL, self._sweep)
            return
        device = self._device
        self.in_flight += len(batch)
        self._counters.sweeps += 1
        if trace.virtio_blk_burst.enabled:
            trace.virtio_blk_burst(self.index, len(batch), self.in_flight)
        requests = parse(batch, device.backend.size, device.logical_block_size)
        if self._written is not None:
            self._written.begin(requests)
        self._runner.start(requests)
        if self._left and not len(ring.left):
            resolve_all(self._left)
        self._schedule_sweep()

    def _break(self, error: BrokenRingError) -> None:
        """Serve this ring no more, as a device that needs a reset (VIRTIO 1.3, 2.1.2)."""
        self._broken = True
        resolve_all(self._left)
        self._warn_broken(error)
        if self._err_fd is not None:
            eventfd.signal(self._err_fd)

    # Completing requests.

    def _publish(self, completed: Completed) -> None:
        """Write the statuses, then the used entries, then notify."""
        memory = self._ring.memory
        addrs, statuses = completed.status_addrs.astype(np.int64), completed.statuses
        lengths = np.minimum(completed.written, 0xFFFF_FFFE).astype(np.uint32) + np.uint32(1)
        if not addrs.all():
            answered = addrs != 0
            lengths[~answered] = 0
            addrs, statuses = addrs[answered], statuses[answered]
        memory.span[addrs - memory.span_base] = statuses
        if self._written is not None:
            self._written.end(completed, memory)
        notify = self._ring.push(completed.heads, lengths)
        if notify and self._call_fd is not None:
            self._counters.notified += 1
            eventfd.signal(self._call_fd)
        self.in_flight -= len(completed.heads)
        if self._idle and not self.in_flight:
            resolve_all(self._idle)
