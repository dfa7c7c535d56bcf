# SPDX-License-Identifier: Apache-2.0
"""Running parsed requests on the block layer, for either lane.

A `RequestRunner` starts a burst of requests, each a coroutine of the block backend driven by hand,
and gathers what completes: within the burst it is published at the end of it, later completions at
the loop's next turn, all together.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.completion import drive
from vhostblk.block.iovec import IoVec
from vhostblk.virtio_blk.device import status_of
from vhostblk.virtio_blk.discard import RefusedError
from vhostblk.virtio_blk.layout import RequestType, Status
from vhostblk.virtio_blk.request import PENDING, BlockRequests

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtio_blk.statistics import Counters


class Completed(NamedTuple):
    """Requests that have completed, in order; four lists of one length.

    `written` counts the bytes written to a request's data segments, without the status byte.
    `status_addrs` are host addresses, 0 where a chain has no room for a status.
    """

    heads: list[int]
    written: list[int]
    status_addrs: list[int]
    statuses: list[int]


class RequestRunner:
    """Runs requests on `device`; gives what has completed to `publish`.

    `counters` counts them, unless somebody else does.
    """

    def __init__(
        self,
        device: BlkDevice,
        log: RateLimitedLogger,
        publish: Callable[[Completed], object],
        counters: Counters | None = None,
    ) -> None:
        self._device = device
        self._counters = counters
        self._log = log
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._publish_handle: asyncio.Handle | None = None
        self._completed = Completed([], [], [], [])

    def start(self, requests: BlockRequests) -> None:
        """Start all requests of a burst and publish those that have completed by then."""
        device = self._device
        device.backend.begin(len(requests.records))
        preadv, pwritev = device.backend.preadv, device.backend.pwritev
        iovs, address, owner = requests.iovs, requests.iovs_address, requests.memory
        began = perf_counter_ns()
        record: tuple[int, int, int, int, int, int, int, int, int]
        for record in requests.records.tolist():
            sector, length, status_addr, kind, first, count, head, status, _ = record
            if status != PENDING:
                self._refuse(head, status_addr, status)
                continue
            counted = (kind, length, began)
            iov = IoVec(iovs, first, count, length, address + 16 * first, owner)
            if kind == RequestType.IN:
                drive(
                    preadv(sector * 512, iov),
                    partial(self._done, head, status_addr, counted, length),
                )
            elif kind != RequestType.OUT:
                drive(
                    device.execute(kind, iov), partial(self._executed, head, status_addr, counted)
                )
            elif device.writable:
                drive(
                    pwritev(sector * 512, iov), partial(self._done, head, status_addr, counted, 0)
                )
            else:
                self._refuse(head, status_addr, Status.IOERR)
        if self._completed.heads:
            self._publish_now()

    def _refuse(self, head: int, status_addr: int, status: int) -> None:
        if self._counters is not None:
            self._counters.count_invalid()
        self._complete(head, status_addr, 0, status)

    def _done(
        self,
        head: int,
        status_addr: int,
        counted: tuple[int, int, int],
        written: int,
        _result: object,
        error: BaseException | None,
    ) -> None:
        if self._counters is not None:
            self._counters.count(*counted, ok=error is None)
        if error is None:
            self._complete(head, status_addr, written, 0)
        else:
            self._fail(head, status_addr, error)

    def _executed(
        self,
        head: int,
        status_addr: int,
        counted: tuple[int, int, int],
        written: int | None,
        error: BaseException | None,
    ) -> None:
        self._done(head, status_addr, counted, written or 0, None, error)

    def _fail(self, head: int, status_addr: int, error: BaseException) -> None:
        if isinstance(error, OSError):
            self._log.warning("request failed: %s", error.strerror)
        elif not isinstance(error, RefusedError):
            self._log.error("request failed", exc_info=error)
        self._complete(head, status_addr, 0, status_of(error))

    def _complete(self, head: int, status_addr: int, written: int, status: int) -> None:
        completed = self._completed
        completed.heads.append(head)
        completed.written.append(written)
        completed.status_addrs.append(status_addr)
        completed.statuses.append(status)
        if self._publish_handle is None:
            self._publish_handle = self._loop.call_soon(self._publish_now)

    def _publish_now(self) -> None:
        if self._publish_handle is not None:
            self._publish_handle.cancel()
            self._publish_handle = None
        completed, self._completed = self._completed, Completed([], [], [], [])
        self._publish(completed)
        self._device.backend.end(len(completed.heads))
