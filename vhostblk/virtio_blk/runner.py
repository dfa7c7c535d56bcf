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

import numpy as np

from vhostblk.block.io.completion import drive, follow
from vhostblk.block.io.iovec import IoVec
from vhostblk.engine.layouts import RECORD
from vhostblk.errors import errno_of, reason
from vhostblk.virtio_blk.discard import RefusedError
from vhostblk.virtio_blk.layout import APPEND_SECTOR_BYTES, SECTOR_SIZE, RequestType, Status
from vhostblk.virtio_blk.pieces import TURN_BYTES, in_pieces
from vhostblk.virtio_blk.request import PENDING, BlockRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vhostblk.block.graph.node import Failures
    from vhostblk.block.io.completion import Completion
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtio_blk.statistics import Counters


class Completed(NamedTuple):
    """Requests that have completed, in order; four arrays of shape (n,).

    `written` counts the bytes written to a request's data segments, without the status byte.
    `status_addrs` are host addresses, 0 where a chain has no room for a status.
    """

    heads: NDArray[np.uint16]
    written: NDArray[np.uint64]
    status_addrs: NDArray[np.uint64]
    statuses: NDArray[np.uint8]


#: One row of `Completed`.
Outcome = tuple[int, int, int, int]

# Plain integers compare several times faster than enum members.
_IN, _OUT = int(RequestType.IN), int(RequestType.OUT)
_ZONE_APPEND = int(RequestType.ZONE_APPEND)


class RequestRunner:
    """Runs requests on `device`; gives what has completed to `publish`.

    Where all that has completed are reads and writes that did all they should, their records go to
    `publish_in_full`, if there is such a shorter way. `counters` counts them, unless somebody else
    does.
    """

    def __init__(
        self,
        device: BlkDevice,
        log: RateLimitedLogger,
        publish: Callable[[Completed], object],
        counters: Counters | None = None,
        publish_in_full: Callable[[NDArray[np.void]], object] | None = None,
    ) -> None:
        self._device = device
        self._counters = counters
        self._log = log
        self._publish: Callable[[Completed], object] = publish
        self._publish_in_full = publish_in_full
        self._loop = asyncio.get_running_loop()
        self._publish_handle: asyncio.Handle | None = None
        self._outcomes: list[Outcome] = []
        #: (type, bytes, began) of those among them that succeeded.
        self._succeeded: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Let go of the queue: without a cycle guest memory is unmapped as soon as it can be."""
        self._publish = _publish_nothing
        self._publish_in_full = None

    def start(self, requests: BlockRequests) -> None:
        """Start all requests of a burst and publish those that have completed by then.

        Here a microsecond a request counts: one that succeeds without waiting leaves nothing but
        the number of its record.
        """
        backend = self._device.backend
        if backend.node.takes_bursts and self._start_together(requests):
            return
        backend.begin(len(requests.records))
        self._start_each(requests)

    def _start_each(self, requests: BlockRequests) -> None:
        preadv, pwritev = self._device.preadv, self._device.backend.pwritev
        writable, longest = self._device.writable, self._device.longest_transfer
        records, iovs, address, owner = requests
        began = perf_counter_ns()
        spare = TURN_BYTES
        at_once: list[int] = []
        bases: list[int] = iovs["base"].tolist()
        fields: Iterator[tuple[int, ...]] = RECORD.iter_unpack(records.data)
        for row, (sector, length, status_addr, kind, first, count, head, status, _) in enumerate(
            fields
        ):
            if status != PENDING:
                self._refuse(head, status_addr, status)
                continue
            only = bases[first] if count == 1 else 0
            iov = IoVec(iovs, first, count, length, address + 16 * first, owner, only)
            spare -= length
            if length > longest and kind <= _OUT and (kind == _IN or writable):
                transfer = preadv if kind == _IN else pwritev
                coroutine = in_pieces(transfer, sector * SECTOR_SIZE, iov)
            elif kind == _IN:
                coroutine = preadv(sector * SECTOR_SIZE, iov)
            elif kind != _OUT:
                self._execute(kind, sector, iov, (head, 0, status_addr, 0), began)
                continue
            elif writable:
                coroutine = pwritev(sector * SECTOR_SIZE, iov)
            else:
                self._refuse(head, status_addr, Status.IOERR)
                continue
            try:
                waited = coroutine.send(None)
            except StopIteration:
                at_once.append(row)
            except Exception as error:
                self._fail((head, 0, status_addr, 0), kind, error)
            else:
                outcome = (head, length if kind == _IN else 0, status_addr, 0)
                counted = (kind, length, began)
                follow(coroutine, waited, partial(self._done, outcome, counted))
            if spare < 0 and row + 1 < len(records):  # the rest has its turn after others
                rest = BlockRequests(records[row + 1 :], iovs, address, owner)
                self._loop.call_soon(self._start_each, rest)
                records = records[: row + 1]
                break
        if at_once or self._outcomes:
            done = records if len(at_once) == len(records) else records[at_once]
            if self._counters is not None:
                self._counters.count_transfers(done["type"], done["length"], began)
            self._publish_with(done)

    def _start_together(self, requests: BlockRequests) -> bool:
        """Start a burst of nothing but writes as one; tell whether that could be."""
        records, iovs, address, owner = requests
        if (
            not self._device.writable
            or (records["type"] != _OUT).any()
            or (records["status"] != PENDING).any()
            or records["length"].sum() > TURN_BYTES
        ):
            return False
        began = perf_counter_ns()
        bases: list[int] = iovs["base"].tolist()
        columns = (records[name].tolist() for name in ("iov_first", "iov_count", "length"))
        lists = [
            IoVec(iovs, first, count, length, address + 16 * first, owner,
                  bases[first] if count == 1 else 0)
            for first, count, length in zip(*columns, strict=True)
        ]  # fmt: skip
        offsets: list[int] = (records["sector"] * np.uint64(SECTOR_SIZE)).tolist()
        backend = self._device.backend
        together = backend.pwritev_burst(offsets, lists)
        if together is None:
            return False
        backend.begin(len(records))
        drive(self._finish_together(together, records, began), self._finished_together)
        return True

    async def _finish_together(
        self, together: Completion[Failures], records: NDArray[np.void], began: int
    ) -> None:
        failures = await together
        if not failures:
            if self._counters is not None:
                self._counters.count_transfers(records["type"], records["length"], began)
            self._publish_with(records)
            return
        columns = (records[name].tolist() for name in ("head", "length", "status_addr"))
        for head, length, status_addr, error in zip(*columns, failures, strict=True):
            self._done((head, 0, status_addr, 0), (_OUT, length, began), None, error)

    def _finished_together(self, _result: None, error: BaseException | None) -> None:
        if error is not None:  # it must not cost others their completions
            self._log.error("telling the driver failed", exc_info=error)

    def _execute(self, kind: int, sector: int, iov: IoVec, outcome: Outcome, began: int) -> None:
        length = iov.nbytes
        if kind == _ZONE_APPEND:
            length -= APPEND_SECTOR_BYTES
        coroutine = self._device.execute(kind, iov, sector)
        drive(coroutine, partial(self._executed, outcome, (kind, length, began)))

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
        head, _, status_addr, _ = outcome
        status = self._device.status_of(error)
        # First of all: the guest gets its answer whatever goes wrong in the rest.
        self._complete((head, 0, status_addr, status))
        if isinstance(error, OSError):
            self._log.warning("request failed: %s", reason(error))
        elif not isinstance(error, RefusedError):
            self._log.error("request failed", exc_info=error)
        if status == Status.IOERR and not isinstance(error, RefusedError):
            self._device.report_error(kind, errno_of(error))
        if self._counters is not None:
            self._counters.count_failed(kind)

    def _complete(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if self._publish_handle is None:
            self._publish_handle = self._loop.call_soon(self._publish_now)

    def _publish_now(self) -> None:
        self._publish_with(None)

    def _publish_with(self, at_once: NDArray[np.void] | None) -> None:
        """Publish all outcomes, and these reads and writes, `REQUEST` records, as successes."""
        if self._publish_handle is not None:
            self._publish_handle.cancel()
            self._publish_handle = None
        if at_once is not None and self._publish_in_full is not None and not self._outcomes:
            self._publish_in_full(at_once)
            self._device.backend.end(len(at_once))
            return
        parts = []
        if at_once is not None and len(at_once):
            parts.append(_successes(at_once))
        if self._outcomes:
            parts.append(_transpose(self._outcomes))
            self._outcomes = []
        if self._counters is not None and self._succeeded:
            self._counters.count(self._succeeded)
            self._succeeded = []
        completed = parts[0]
        if len(parts) > 1:
            completed = Completed(*map(np.concatenate, zip(*parts, strict=True)))
        self._publish(completed)
        self._device.backend.end(len(completed.heads))


def _successes(records: NDArray[np.void]) -> Completed:
    written = np.where(records["type"] == _IN, records["length"], 0)
    statuses = np.zeros(len(records), np.uint8)
    return Completed(records["head"], written, records["status_addr"], statuses)


def _transpose(outcomes: list[Outcome]) -> Completed:
    heads, written, status_addrs, statuses = zip(*outcomes, strict=True)
    return Completed(
        np.array(heads, np.uint16),
        np.array(written, np.uint64),
        np.array(status_addrs, np.uint64),
        np.array(statuses, np.uint8),
    )


def _publish_nothing(_completed: Completed) -> None:
    """Stand in for a queue that has stopped, with nothing in flight."""
