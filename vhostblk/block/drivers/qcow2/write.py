# SPDX-License-Identifier: Apache-2.0
"""Writes that change metadata: allocation and copy-on-write.

Writes that arrive in one iteration of the event loop are done together. The host clusters that they
need are allocated as runs, and ranges that are contiguous in the file are one transfer. A cluster
that several writes fill completely needs no copy-on-write. For each guest cluster a `_Plan` has its
place and the data to write there in addition to the guests' data. L2 entries change after all data
has been written; until then reads return the former content.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from vhostblk.block.drivers.qcow2.layout import ALL_SUBCLUSTERS, COPIED, SUBCLUSTERS
from vhostblk.block.drivers.qcow2.mapping import Entry, Kind
from vhostblk.block.drivers.qcow2.scratch import Scratch
from vhostblk.block.drivers.qcow2.write_fresh import MAX_RUN, write_fresh
from vhostblk.block.io.completion import Completion, drive, gather
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.graph.node import Failures

#: Limits of a batch: requests, and bytes of the clusters that they touch.
_BATCH_REQUESTS = 256
_BATCH_BYTES = 32 << 20
#: Fills with a gap of at most this many bytes are read at once, including the gap.
_NEAR = 16 << 10
#: Zeroes of this length or more are made with write-zeroes requests.
_LONG_ZEROES = 32 << 10


class _Burst:
    """Writes that complete together."""

    __slots__ = ("count", "done", "failures", "left")

    def __init__(self, count: int) -> None:
        self.count = self.left = count
        self.failures: Failures = []
        self.done: Completion[Failures] = Completion()

    def fail(self, number: int, error: BaseException) -> None:
        """Record the error of one of them."""
        if not self.failures:
            self.failures = [None] * self.count
        self.failures[number] = error


class Request:
    """A guest's write that waits for its turn; part of a burst."""

    __slots__ = ("burst", "error", "iov", "number", "offset", "stop")

    def __init__(self, offset: int, iov: IoVec, burst: _Burst, number: int) -> None:
        self.offset = offset
        self.stop = offset + iov.nbytes
        self.iov = iov
        self.burst = burst
        self.number = number
        self.error: BaseException | None = None


class _Plan:
    """The changes of one guest cluster."""

    __slots__ = ("cluster", "entry", "error", "fills", "found", "fresh", "host", "index", "needed",
                 "new", "requests")  # fmt: skip

    def __init__(self, cluster: int, found: L2Slice, index: int, entry: Entry) -> None:
        self.cluster = cluster
        self.found = found
        self.index = index
        self.entry = entry
        self.requests: list[Request] = []
        #: A host cluster is allocated for it. Otherwise it stays in place.
        self.new = False
        self.host = entry.host
        #: The host cluster reads as zeroes, except where it has been written.
        self.fresh = False
        #: Subclusters whose data will be added to the host cluster.
        self.needed = 0
        #: Guest ranges to fill: start, stop, and the type of their content (ZERO: zeroes).
        self.fills: list[tuple[int, int, Kind]] = []
        self.error: BaseException | None = None


class _Copy(NamedTuple):
    """A guest range to read at once, and the fills in it."""

    plan: _Plan
    start: int
    stop: int
    kind: Kind
    parts: list[tuple[int, int]]


class _Transfer:
    """A run of bytes to write to the data file, and its plans."""

    __slots__ = ("host", "iovs", "length", "plans")

    def __init__(self, host: int, length: int, iov: IoVec | None, plan: _Plan) -> None:
        self.host = host
        self.length = length
        #: None: zeroes.
        self.iovs = None if iov is None else [iov]
        self.plans = [plan]


class Writer:
    """Does the writes that the published table does not allow."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._pending: list[Request] = []
        self._running = False
        self._zeroes: IoVec | None = None
        self._scratch = Scratch()

    async def write(self, offset: int, iov: IoVec) -> None:
        """Write a range, in order with other changes."""
        for error in await self.write_burst([offset], [iov]):
            if error is not None:
                raise error

    def write_burst(self, offsets: list[int], iovs: list[IoVec]) -> Completion[Failures]:
        """Write ranges, in order with other changes."""
        burst = _Burst(len(offsets))
        for number, offset in enumerate(offsets):
            self._pending.append(Request(offset, iovs[number], burst, number))
        self._begin()
        return burst.done

    def _begin(self) -> None:
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        drive(self._run(), _raise)

    async def _run(self) -> None:
        try:
            while self._pending:
                async with self._image.lock:
                    await self._do(self._take_batch())
        finally:
            self._running = False
            if self._pending:  # our own bug must not leave others waiting
                self._begin()

    def _take_batch(self) -> list[Request]:
        taken, touched = 0, 0
        for request in self._pending[:_BATCH_REQUESTS]:
            touched += request.iov.nbytes + self._image.geometry.cluster_size
            if taken and touched > _BATCH_BYTES:
                break
            taken += 1
        batch, self._pending = self._pending[:taken], self._pending[taken:]
        return batch

    async def _do(self, batch: list[Request]) -> None:
        plans: dict[int, _Plan] = {}
        rest = batch
        try:
            self._image.check_usable()
            rest = await write_fresh(self._image, batch, self._scratch)
            if rest:
                await self._plan_all(rest, plans)
                await self._perform([plan for plan in plans.values() if plan.error is None])
        except Exception as error:
            for request in rest:
                request.error = request.error or error
        for plan in plans.values():
            plan.found.pins -= 1
            for request in plan.requests if plan.error is not None else ():
                request.error = request.error or plan.error
        for request in batch:
            burst = request.burst
            if request.error is not None:
                burst.fail(request.number, request.error)
            burst.left -= 1
            if not burst.left:
                burst.done.set_result(burst.failures)
        await self._image.relieve()

    # Planning.

    async def _plan_all(self, batch: list[Request], plans: dict[int, _Plan]) -> None:
        bits = self._image.geometry.cluster_bits
        for request in batch:
            for cluster in range(request.offset >> bits, (request.stop - 1 >> bits) + 1):
                plan = plans.get(cluster)
                if plan is None:
                    try:
                        plan = plans[cluster] = await self._plan(cluster)
                    except OSError as error:
                        request.error = error
                        break
                plan.requests.append(request)
        for cluster in sorted(plans):
            self._work_out(plans[cluster])
        await self._allocate([plans[cluster] for cluster in sorted(plans) if plans[cluster].new])

    async def _plan(self, cluster: int) -> _Plan:
        image = self._image
        tables = image.tables
        found = await image.ensure_table(cluster << image.geometry.cluster_bits)
        index = cluster & tables.entry_mask
        entry = image.reader.entry_at(found, index, cluster)
        found.pins += 1
        return _Plan(cluster, found, index, entry)

    def _work_out(self, plan: _Plan) -> None:
        """Decide whether the cluster stays in place, and which ranges to fill."""
        geometry, entry = self._image.geometry, plan.entry
        start = plan.cluster << geometry.cluster_bits
        stop = start + geometry.cluster_size
        covered = _union(
            (max(request.offset, start), min(request.stop, stop)) for request in plan.requests
        )
        touched = 0
        for low, high in covered:
            first = low - start >> geometry.subcluster_bits
            last = high - 1 - start >> geometry.subcluster_bits
            touched |= (2 << last) - (1 << first)
        plan.new = not geometry.external_data and (entry.host < 0 or not entry.copied)
        if plan.new:
            kept = ALL_SUBCLUSTERS if geometry.extended_l2 else 1
            plan.needed = touched | (kept if entry.compressed else entry.data)
        else:
            if geometry.external_data:
                plan.host = start
            plan.needed = touched & ~entry.data
        self._find_fills(plan, start, covered)

    def _find_fills(self, plan: _Plan, start: int, covered: list[tuple[int, int]]) -> None:
        """Find the content of needed subclusters that no request writes."""
        geometry, entry = self._image.geometry, plan.entry
        has_backing = self._image.backing is not None
        size, needed, number = geometry.subcluster_size, plan.needed, 0
        if has_backing and needed and covered != [(start, start + geometry.cluster_size)]:
            has_backing = not self._backing_is_zero(start, geometry.cluster_size)
        while needed >> number:
            if needed >> number & 1:
                low, kind = start + number * size, entry.kind(number)
                if kind is Kind.UNALLOCATED and not has_backing:
                    kind = Kind.ZERO
                for gap in _gaps(low, low + size, covered):
                    last = plan.fills[-1] if plan.fills else None
                    if last is not None and last[1] == gap[0] and last[2] is kind:
                        plan.fills[-1] = (last[0], gap[1], kind)
                    else:
                        plan.fills.append((*gap, kind))
            number += 1

    def _backing_is_zero(self, start: int, length: int) -> bool:
        backing = self._image.backing
        return backing is None or backing.known_zero(start, length)

    async def _allocate(self, plans: list[_Plan]) -> None:
        """Allocate host clusters. If there are too few, the first plans get them."""
        bits, count = self._image.geometry.cluster_bits, len(plans)
        waiting = iter(plans)
        left = count
        while left:
            try:
                runs = await self._image.allocator.allocate(count)
            except OSError as error:
                if count == 1:
                    for plan in waiting:
                        plan.error = error
                    return
                count //= 2
                continue
            for run in runs:
                for cluster in range(run.first, run.first + run.length):
                    plan = next(waiting)
                    plan.host = cluster << bits
                    plan.fresh = run.fresh
            left -= count
            count = min(count, left)

    # Execution.

    async def _perform(self, plans: list[_Plan]) -> None:
        """Write data, then change the L2 entries. Errors are recorded in the plans."""
        image = self._image
        sources = await self._read_fills(plans)
        transfers = _join(self._transfers(plans, sources))
        try:
            for plan in plans:
                if not plan.new:  # else it was checked when it was allocated
                    image.overlap.check_data(plan.host, 1)
        except OSError as refusal:
            for plan in plans:
                plan.error = refusal
            transfers = []
        failures = await gather([self._transfer(each) for each in transfers])
        image.commit.wrote()
        self._note_used(plans)
        for transfer, failure in zip(transfers, failures, strict=True):
            if failure is not None:
                await self._record_failure(transfer, failure)
        self._link([plan for plan in plans if plan.error is None and plan.needed])
        for plan in plans:
            if plan.error is not None:
                await self._undo(plan)

    def _note_used(self, plans: list[_Plan]) -> None:
        """Record writes that may be past all clusters in use."""
        image = self._image
        if image.geometry.external_data:
            return
        bits, size = image.geometry.cluster_bits, image.file.node.size
        for plan in plans:
            if not plan.new and plan.host < size:
                image.allocator.used(plan.host >> bits)

    async def _record_failure(self, transfer: _Transfer, failure: BaseException) -> None:
        """Record a transfer's error. One of several plans is first retried plan by plan."""
        failures: Failures = [failure] * len(transfer.plans)
        if transfer.iovs is not None and len(transfer.iovs) > 1:
            host, writes = transfer.host, []
            for iov in transfer.iovs:
                writes.append(self._image.guest_data.write(host, iov))
                host += iov.nbytes
            failures = await gather(writes)
        for plan, error in zip(transfer.plans, failures, strict=True):
            plan.error = plan.error or error

    async def _undo(self, plan: _Plan) -> None:
        """Free a host cluster that nothing refers to yet."""
        if plan.new:
            await self._image.allocator.free_bytes(plan.host, 1)

    async def _read_fills(self, plans: list[_Plan]) -> dict[int, IoVec]:
        """Read the data to copy, all at once; by guest offset."""
        wanted = [copy for plan in plans for copy in _copies(plan)]
        if not wanted:
            return {}
        buffers = self._scratch_parts(wanted)
        reads: list[Coroutine[Any, Any, None]] = []
        sources: dict[int, IoVec] = {}
        image = self._image
        for copy in wanted:
            iov = next(buffers)
            if copy.kind is Kind.UNALLOCATED and image.backing is not None:
                reads.append(image.backing.preadv(copy.start, iov))
            else:
                reads.append(image.reader.read(copy.start, iov))
            for start, _ in copy.parts:
                sources[start] = next(buffers)
        for copy, error in zip(wanted, await gather(reads), strict=True):
            if error is not None:
                copy.plan.error = copy.plan.error or error
        return sources

    def _scratch_parts(self, copies: list[_Copy]) -> Iterator[IoVec]:
        """Return a buffer for each copy, each followed by its parts."""
        total, places = 0, []
        for copy in copies:
            for low, high in [(copy.start, copy.stop), *copy.parts]:
                places.append((total + low - copy.start, high - low))
            total += -(-(copy.stop - copy.start) // 4096) * 4096
        return iter(self._scratch.windows(total, places))

    def _transfers(self, plans: list[_Plan], sources: dict[int, IoVec]) -> list[_Transfer]:
        geometry = self._image.geometry
        found: list[_Transfer] = []
        for plan in plans:
            if plan.error is not None:
                continue
            start = plan.cluster << geometry.cluster_bits
            stop = start + geometry.cluster_size
            for request in plan.requests:
                low, high = max(request.offset, start), min(request.stop, stop)
                part = request.iov.slice(low - request.offset, high - request.offset)
                found.append(_Transfer(plan.host + low - start, high - low, part, plan))
            for low, high, kind in plan.fills:
                if kind is not Kind.ZERO:
                    source = sources[low]
                elif plan.fresh:
                    continue
                elif high - low >= _LONG_ZEROES:
                    found.append(_Transfer(plan.host + low - start, high - low, None, plan))
                    continue
                else:
                    source = self._zero_bytes(high - low)
                found.append(_Transfer(plan.host + low - start, high - low, source, plan))
        return found

    def _zero_bytes(self, length: int) -> IoVec:
        if self._zeroes is None:
            self._zeroes = IoVec.allocate(_LONG_ZEROES, 4096)
        return self._zeroes.slice(0, length)

    def _transfer(self, transfer: _Transfer) -> Coroutine[Any, Any, None]:
        data = self._image.guest_data
        if transfer.iovs is None:
            return data.write_zeroes(transfer.host, transfer.length)
        iov = transfer.iovs[0] if len(transfer.iovs) == 1 else IoVec.concat(transfer.iovs)
        return data.write(transfer.host, iov)

    def _link(self, plans: list[_Plan]) -> None:
        """Let L2 entries refer to the data, and free what they referred to before."""
        image = self._image
        geometry = image.geometry
        for plan in plans:
            entry, found, index = plan.entry, plan.found, plan.index
            word = plan.host | COPIED
            if geometry.extended_l2:
                data = plan.needed if plan.new else entry.data | plan.needed
                zero = 0 if entry.compressed else entry.zero & ~plan.needed
                found.words[2 * index] = word
                found.words[2 * index + 1] = data | zero << SUBCLUSTERS
            else:
                found.words[index] = word
            found.touch(index, index + 1)
            image.publisher.changed(found, index, plan.cluster, word)
            if plan.new:
                image.give_up(entry)
            elif geometry.external_data:
                image.commit.keep(plan.cluster)


def _copies(plan: _Plan) -> list[_Copy]:
    """Return the ranges to read to fill a cluster."""
    found: list[_Copy] = []
    for start, stop, kind in plan.fills:
        if kind is Kind.ZERO:
            continue
        last = found[-1] if found else None
        if last is not None and last.kind is kind and start - last.stop <= _NEAR:
            last.parts.append((start, stop))
            found[-1] = last._replace(stop=stop)
        else:
            found.append(_Copy(plan, start, stop, kind, [(start, stop)]))
    return found


def _union(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted ranges that don't touch each other."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return result


def _gaps(low: int, high: int, covered: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of [low, high) that are not covered."""
    result: list[tuple[int, int]] = []
    for start, stop in covered:
        if stop <= low or start >= high:
            continue
        if start > low:
            result.append((low, start))
        low = stop
    if low < high:
        result.append((low, high))
    return result


def _join(transfers: list[_Transfer]) -> list[_Transfer]:
    """Join contiguous transfers."""
    result: list[_Transfer] = []
    for transfer in sorted(transfers, key=lambda each: each.host):
        last = result[-1] if result else None
        if last is not None and last.host + last.length == transfer.host:
            if last.iovs is not None and transfer.iovs is not None and last.length < MAX_RUN:
                last.iovs += transfer.iovs
                last.length += transfer.length
                last.plans += transfer.plans
                continue
            if last.iovs is None and transfer.iovs is None:
                last.length += transfer.length
                last.plans += transfer.plans
                continue
        result.append(transfer)
    return result


def _raise(_result: object, error: BaseException | None) -> None:
    if error is not None:
        raise error
