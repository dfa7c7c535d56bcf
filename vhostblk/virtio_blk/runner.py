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
from vhostblk.virtio_blk.layout import SECTOR_SIZE, RequestType, Status
from vhostblk.virtio_blk.request import PENDING, BlockRequests

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtio_blk.statistics import Counters


class Completed(NamedTuple):
    """Requests that have completed, in order; four tuples of one length.

    `written` counts the bytes written to a request's data segments, without the status byte.
    `status_addrs` are host addresses, 0 where a chain has no room for a status.
    """

    heads: tuple[int, ...]
    written: tuple[int, ...]
    status_addrs: tuple[int, ...]
    statuses: tuple[int, ...]


#: One row of `Completed`.
Outcome = tuple[int, int, int, int]

# Plain integers compare several times faster than enum members.
_IN, _OUT = int(RequestType.IN), int(RequestType.OUT)


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
        self._outcomes: list[Outcome] = []
        #: (type, bytes, began) of those among them that succeeded.
        self._succeeded: list[tuple[int, int, int]] = []

    def start(self, requests: BlockRequests) -> None:
        """Start all requests of a burst and publish those that have completed by then."""
        device = self._device
        device.backend.begin(len(requests.records))
        preadv, pwritev = device.backend.preadv, device.backend.pwritev
        iovs, address, owner = requests.iovs, requests.iovs_address, requests.memory
        done, began = self._done, perf_counter_ns()
        record: tuple[int, int, int, int, int, int, int, int, int]
        for record in requests.records.tolist():
            sector, length, status_addr, kind, first, count, head, status, _ = record
            if status != PENDING:
                self._refuse(head, status_addr, status)
                continue
            counted = (kind, length, began)
            iov = IoVec(iovs, first, count, length, address + 16 * first, owner)
            if kind == _IN:
                outcome = (head, length, status_addr, 0)
                drive(preadv(sector * SECTOR_SIZE, iov), partial(done, outcome, counted))
            elif kind != _OUT:
                outcome = (head, 0, status_addr, 0)
                drive(device.execute(kind, iov), partial(self._executed, outcome, counted))
            elif device.writable:
                outcome = (head, 0, status_addr, 0)
                drive(pwritev(sector * SECTOR_SIZE, iov), partial(done, outcome, counted))
            else:
                self._refuse(head, status_addr, Status.IOERR)
        if self._outcomes:
            self._publish_now()

    def _refuse(self, head: int, status_addr: int, status: int) -> None:
        if self._counters is not None:
            self._counters.invalid += 1
        self._complete((head, 0, status_addr, status))

    def _done(
        self,
        outcome: Outcome,
        counted: tuple[int, int, int],
        _result: object,
        error: BaseException | None,
    ) -> None:
        if error is None:
            self._succeeded.append(counted)
            self._complete(outcome)
        else:
            self._fail(outcome, counted[0], error)

    def _executed(
        self,
        outcome: Outcome,
        counted: tuple[int, int, int],
        written: int | None,
        error: BaseException | None,
    ) -> None:
        head, _, status_addr, status = outcome
        self._done((head, written or 0, status_addr, status), counted, None, error)

    def _fail(self, outcome: Outcome, kind: int, error: BaseException) -> None:
        if isinstance(error, OSError):
            self._log.warning("request failed: %s", error.strerror)
        elif not isinstance(error, RefusedError):
            self._log.error("request failed", exc_info=error)
        if self._counters is not None:
            self._counters.count_failed(kind)
        head, _, status_addr, _ = outcome
        self._complete((head, 0, status_addr, status_of(error)))

    def _complete(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if self._publish_handle is None:
            self._publish_handle = self._loop.call_soon(self._publish_now)

    def _publish_now(self) -> None:
        if self._publish_handle is not None:
            self._publish_handle.cancel()
            self._publish_handle = None
        outcomes, self._outcomes = self._outcomes, []
        succeeded, self._succeeded = self._succeeded, []
        if self._counters is not None:
            self._counters.count(succeeded)
        self._publish(Completed(*zip(*outcomes, strict=True)))
        self._device.backend.end(len(outcomes))
