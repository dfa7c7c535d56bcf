# SPDX-License-Identifier: Apache-2.0
"""One queue of a virtio block device on the Python lane: kicks in, completions out.

Everything runs on the event loop's thread. A *sweep* takes one burst from the ring, starts all its
requests, and publishes whatever has completed by then in one go. While sweeps find work the driver
is asked not to kick; a sweep that finds none asks for kicks again and looks once more. Between two
sweeps the loop turns, so that queues share it fairly and completions come in. Requests that finish
later are gathered until the loop's next turn and published together.

States: *started* from `start` to `stop`; *held* while anybody holds it (disabled by the
front-end, drained, or the memory table changing): requests in flight go on, new ones wait.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.completion import Completion, drive
from vhostblk.block.iovec import IoVec
from vhostblk.virtio_blk import eventfd
from vhostblk.virtio_blk.device import status_of
from vhostblk.virtio_blk.discard import RefusedError
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtio_blk.request import PENDING, BlockRequests, parse
from vhostblk.virtqueue.errors import BrokenRingError

if TYPE_CHECKING:
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.vhost_user.memory import GuestMemory
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtqueue.split import SplitQueue

#: How often a ring without a kick descriptor is looked at, in seconds.
POLL_INTERVAL = 0.0005

#: Most requests taken in one sweep, so that a long queue can't keep the loop from the others.
BURST = 256


class BlkQueue:
    """A started queue. `kick_fd` and the call descriptor belong to it until it stops."""

    def __init__(
        self,
        index: int,
        ring: SplitQueue,
        device: BlkDevice,
        kick_fd: int | None,
        log: RateLimitedLogger,
    ) -> None:
        self.index = index
        self.in_flight = 0
        self._ring = ring
        self._device = device
        self._kick_fd = kick_fd
        self._log = log
        self._call_fd: int | None = None
        self._err_fd: int | None = None
        self._loop = asyncio.get_running_loop()
        self._holds = 0
        self._broken = False
        self._stopped = False
        self._sweep_handle: asyncio.Handle | None = None
        self._publish_handle: asyncio.Handle | None = None
        self._done_heads: list[int] = []
        self._done_lengths: list[int] = []
        self._done_addrs: list[int] = []
        self._done_statuses: list[int] = []
        self._idle: list[Completion[None]] = []

    # The life of the queue.

    def start(self) -> None:
        """Listen for kicks, and look at what is available already."""
        if self._kick_fd is not None:
            self._loop.add_reader(self._kick_fd, self._kicked)
        self._schedule_sweep()

    async def stop(self) -> int:
        """Take no more requests, finish those in flight; return the next avail index."""
        self._stopped = True
        if self._kick_fd is not None:
            self._loop.remove_reader(self._kick_fd)
            os.close(self._kick_fd)
            self._kick_fd = None
        self._cancel_sweep()
        await self.wait_idle()
        return self._ring.next_avail

    def hold(self) -> None:
        """Take no more requests until `release`; holds add up."""
        self._holds += 1
        self._cancel_sweep()

    def release(self) -> None:
        """Undo one `hold`."""
        self._holds -= 1
        if not self._holds:
            self._schedule_sweep()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight and everything is published."""
        while self.in_flight:
            idle: Completion[None] = Completion()
            self._idle.append(idle)
            await idle

    def move(self, memory: GuestMemory) -> None:
        """Go on in a new memory table; held and idle."""
        self._ring.move(memory)

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
        device.backend.begin(len(batch))
        requests = parse(batch, device.backend.size, device.logical_block_size)
        self._start_all(requests)
        if self._done_heads:
            self._publish()
        self._schedule_sweep()

    def _break(self, error: BrokenRingError) -> None:
        """Serve this ring no more, as a device that needs a reset (VIRTIO 1.3, 2.1.2)."""
        self._broken = True
        self._log.warning("queue %d is broken: %s", self.index, error)
        if self._err_fd is not None:
            eventfd.signal(self._err_fd)

    def _start_all(self, requests: BlockRequests) -> None:
        device = self._device
        preadv, pwritev = device.backend.preadv, device.backend.pwritev
        iovs, address, owner = requests.iovs, requests.iovs_address, requests.memory
        record: tuple[int, int, int, int, int, int, int, int, int]
        for record in requests.records.tolist():
            sector, length, status_addr, kind, first, count, head, status, _ = record
            if status != PENDING:
                self._complete(head, 1 if status_addr else 0, status_addr, status)
                continue
            iov = IoVec(iovs, first, count, length, address + 16 * first, owner)
            if kind == RequestType.IN:
                coroutine = preadv(sector * 512, iov)
                drive(coroutine, partial(self._moved, head, status_addr, length + 1))
            elif kind == RequestType.OUT:
                if not device.writable:
                    self._complete(head, 1, status_addr, Status.IOERR)
                    continue
                coroutine = pwritev(sector * 512, iov)
                drive(coroutine, partial(self._moved, head, status_addr, 1))
            else:
                drive(device.execute(kind, iov), partial(self._executed, head, status_addr))

    # Completing requests.

    def _moved(
        self,
        head: int,
        status_addr: int,
        used_length: int,
        _result: None,
        error: BaseException | None,
    ) -> None:
        if error is None:
            self._complete(head, used_length, status_addr, 0)
        else:
            self._fail(head, status_addr, error)

    def _executed(
        self, head: int, status_addr: int, written: int | None, error: BaseException | None
    ) -> None:
        if error is None:
            self._complete(head, (written or 0) + 1, status_addr, 0)
        else:
            self._fail(head, status_addr, error)

    def _fail(self, head: int, status_addr: int, error: BaseException) -> None:
        if isinstance(error, OSError):
            self._log.warning("request failed: %s", error.strerror)
        elif not isinstance(error, RefusedError):
            self._log.error("request failed", exc_info=error)
        self._complete(head, 1, status_addr, status_of(error))

    def _complete(self, head: int, used_length: int, status_addr: int, status: int) -> None:
        self._done_heads.append(head)
        self._done_lengths.append(used_length)
        if status_addr:
            self._done_addrs.append(status_addr)
            self._done_statuses.append(status)
        if self._publish_handle is None:
            self._publish_handle = self._loop.call_soon(self._publish)

    def _publish(self) -> None:
        """Write the statuses, then the used entries, then notify."""
        if self._publish_handle is not None:
            self._publish_handle.cancel()
            self._publish_handle = None
        heads, self._done_heads = self._done_heads, []
        lengths, self._done_lengths = self._done_lengths, []
        addrs, self._done_addrs = self._done_addrs, []
        statuses, self._done_statuses = self._done_statuses, []
        memory = self._ring.memory
        memory.span[np.array(addrs, np.int64) - memory.span_base] = statuses
        notify = self._ring.push(
            np.array(heads, np.uint16), np.minimum(lengths, 0xFFFF_FFFF).astype(np.uint32)
        )
        if notify and self._call_fd is not None:
            eventfd.signal(self._call_fd)
        self.in_flight -= len(heads)
        self._device.backend.end(len(heads))
        if self._idle and not self.in_flight:
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.set_result(None)
