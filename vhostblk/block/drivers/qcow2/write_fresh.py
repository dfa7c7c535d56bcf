# SPDX-License-Identifier: Apache-2.0
"""Fast path for bursts of writes to new clusters in a part of the file that was never used.

Such a cluster gets only the guests' data, or the content of the whole cluster in the backing file
with the guests' data over it. A burst allocates once, reads once, writes runs of clusters, and
changes the tables. This is shorter than `write`, which does all other requests. Requests to
clusters that an earlier burst has allocated are included. Streams get clusters in advance (see
`ahead`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vhostblk.block.drivers.qcow2.layout import COPIED
from vhostblk.block.io.completion import Together, gather
from vhostblk.block.io.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.scratch import Scratch
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.drivers.qcow2.write import Request
    from vhostblk.block.graph.edge import Edge
    from vhostblk.block.graph.node import Failures


class _Cluster:
    """A guest cluster that is not allocated, and the data to write to it."""

    __slots__ = ("error", "found", "host", "number", "parts")

    def __init__(self, number: int, found: L2Slice) -> None:
        self.number = number
        self.found = found
        #: Offset in the cluster, data, and its request; empty for a cluster allocated in advance.
        self.parts: list[tuple[int, IoVec, Request]] = []
        self.host = 0
        self.error: BaseException | None = None

    def pieces(self) -> list[_Piece]:
        """Return the pieces to write, without data of the backing file."""
        return [(self.host + start, iov, (self,)) for start, iov, _ in self.parts]


#: The maximum length of joined pieces. For longer ones the page cache would allocate huge pages,
#: which is slow: copying into them took five times as long on a machine with free page reporting.
MAX_RUN = 512 << 10

#: The receivers of errors.
_Owners: TypeAlias = "Sequence[_Cluster | Request]"
#: Offset in the file, data, and the receivers of errors.
_Piece = tuple[int, IoVec, _Owners]


async def write_fresh(image: Image, batch: Sequence[Request], scratch: Scratch) -> list[Request]:
    """Do the simple requests of a batch; return the others. Errors are recorded in the requests."""
    await _load(image, batch)
    picked, taken_back = _Picked(image), image.publisher.taken_back
    rest = picked.take(batch)
    clusters = [each for each in picked.clusters.values() if each.parts]
    clusters.sort(key=attrgetter("number"))
    for cluster in clusters:
        cluster.found.pins += 1
    try:
        if clusters and not await _allocate(image, clusters):
            return list(batch)
        if image.publisher.taken_back != taken_back:  # a cluster became metadata
            rest += picked.look_again()
        try:
            await _fill(image, clusters, picked.pieces, scratch)
        except BaseException:
            await _give_back(image, clusters)
            raise
        await _link(image, clusters)
        await _give_ahead(image, clusters)
    finally:
        for cluster in clusters:
            cluster.found.pins -= 1
    return rest


async def _load(image: Image, batch: Sequence[Request]) -> None:
    """Load the L2 slices at both ends of each request, as far as the cache has room."""
    bits, slices = image.tables.span_bits, image.tables.slices
    wanted = {request.offset >> bits for request in batch}
    wanted.update([request.stop - 1 >> bits for request in batch])
    for number in wanted:
        found = slices.get(number)
        if found is None or not found.placed:
            try:
                await image.ensure_table(number << bits)
            except OSError:
                continue  # the general path tries again, and reports the error


class _Picked:
    """The simple requests of a batch."""

    def __init__(self, image: Image) -> None:
        geometry = image.geometry
        self._image = image
        self._possible = not geometry.extended_l2 and not geometry.external_data
        self._fresh = image.allocator.gives_fresh
        self.clusters: dict[int, _Cluster] = {}
        #: Requests that only overwrite allocated clusters, and the pieces to write for them.
        self.overwriting: list[Request] = []
        self.pieces: list[_Piece] = []

    def take(self, batch: Sequence[Request]) -> list[Request]:
        """Pick the simple requests; return the others."""
        if not self._possible:
            return list(batch)
        clusters, bits = self.clusters, self._image.geometry.cluster_bits
        overwritable = self._image.publisher.overwritable
        rest: list[Request] = []
        for request in batch:
            offset, iov = request.offset, request.iov
            number = offset >> bits
            if number == request.stop - 1 >> bits:
                cluster = clusters.get(number) or self._cluster(number)
                if cluster is not None:
                    cluster.parts.append((offset - (number << bits), iov, request))
                    continue
            elif self._take_long(request):
                continue
            host = overwritable(offset, iov.nbytes)
            if host >= 0:
                self.overwriting.append(request)
                self.pieces.append((host, iov, (request,)))
            else:
                rest.append(request)
        return rest

    def look_again(self) -> list[Request]:
        """Drop the overwrites; return their requests, which must be checked again."""
        self.pieces = []
        return self.overwriting

    def _take_long(self, request: Request) -> bool:
        """Pick a request for several clusters, if none of them is allocated."""
        bits, offset = self._image.geometry.cluster_bits, request.offset
        numbers = range(offset >> bits, (request.stop - 1 >> bits) + 1)
        found = [self.clusters.get(number) or self._cluster(number) for number in numbers]
        if not all(found):
            return False
        for cluster in found:
            assert cluster is not None
            start = cluster.number << bits
            low, high = max(offset, start), min(request.stop, start + (1 << bits))
            part = request.iov.slice(low - offset, high - offset)
            cluster.parts.append((low - start, part, request))
        return True

    def _cluster(self, number: int) -> _Cluster | None:
        """Start a cluster, if it is not allocated."""
        tables = self._image.tables
        found = tables.slices.get(number >> tables.slice_bits)
        if (
            found is None
            or not found.placed
            or not self._fresh
            or found.words[number & tables.entry_mask]
            or not int(tables.l1[number >> self._image.geometry.l2_bits]) & COPIED
        ):
            return None
        found.used = True
        cluster = self.clusters[number] = _Cluster(number, found)
        return cluster


async def _give_ahead(image: Image, clusters: Sequence[_Cluster]) -> None:
    """Allocate clusters in advance for streams, behind the clusters of a burst.

    The clusters of the burst are linked already. A stream gets none if one of its writes has
    failed. If the allocation fails, it gets none either, without an error, as no request needs
    these clusters.
    """
    written = (each.number for each in clusters if each.error is None)
    for end, count in image.streams.follow(written):
        behind = _behind(image, end, count) if image.allocator.gives_fresh else []
        if behind and await _allocate(image, behind):
            await _link(image, behind)
            image.streams.given(end, len(behind))


def _behind(image: Image, end: int, count: int) -> list[_Cluster]:
    """Return up to `count` unallocated clusters from `end` on that read as zeroes.

    The slice of the cluster before `end` is pinned.
    """
    tables, geometry = image.tables, image.geometry
    found = tables.slices.get(end >> tables.slice_bits)
    first = end & tables.entry_mask
    count = min(count, tables.entry_mask + 1 - first, geometry.clusters(image.size) - end)
    if found is None or not first or count <= 0:
        return []  # `first` is 0: another slice begins there, which may not be loaded
    taken = np.flatnonzero(found.words[first : first + count])
    if len(taken):
        count = int(taken[0])
    start = end << geometry.cluster_bits
    length = min(count << geometry.cluster_bits, image.size - start)
    if image.backing is None:
        if image.header.backing_file is not None:
            return []  # left out by the user, who may attach it later
    elif count and not image.backing.known_zero(start, length):
        return []
    return [_Cluster(number, found) for number in range(end, end + count)]


async def _allocate(image: Image, clusters: Sequence[_Cluster]) -> bool:
    """Allocate host clusters that read as zeroes; return False if there are too few."""
    try:
        runs = await image.allocator.allocate(len(clusters))
    except OSError:
        return False  # the general path tries again, and reports the error
    if not all(run.fresh for run in runs):
        for run in runs:
            await image.allocator.free(run)
        return False
    waiting, bits = iter(clusters), image.geometry.cluster_bits
    for run in runs:
        for host in range(run.first, run.first + run.length):
            next(waiting).host = host << bits
    return True


async def _fill(
    image: Image, clusters: Sequence[_Cluster], pieces: list[_Piece], scratch: Scratch
) -> None:
    """Write pieces, and clusters filled from the backing file. Errors go to the owners."""
    size, backing = image.geometry.cluster_size, image.backing
    incomplete, copied = [], []
    for cluster in clusters:
        if backing is not None and cluster.parts and not _covers(cluster, size):
            incomplete.append(cluster)
        else:
            pieces += cluster.pieces()
    if incomplete and backing is not None:
        zero = backing.known_zeroes([cluster.number * size for cluster in incomplete], size)
        for cluster, is_zero in zip(incomplete, zero, strict=True):
            if is_zero:
                pieces += cluster.pieces()
            else:
                copied.append(cluster)
    writes = _Writes(image)
    try:
        writes.start_all(pieces)
        if copied and backing is not None:
            await _copy(backing, copied, size, scratch, writes)
    finally:
        await writes.finish()


async def _copy(
    backing: Edge, clusters: Sequence[_Cluster], size: int, scratch: Scratch, writes: _Writes
) -> None:
    """Read clusters from the backing file, add the guests' data, and start to write them."""
    whole, address = scratch.segments(len(clusters), size)
    for low, high in _runs(clusters, size):
        if low:
            await asyncio.sleep(0)  # the writes started so far go to the kernel
        some, window = clusters[low:high], whole.segments_from(low, high)
        failures = await backing.pread_segments([each.number * size for each in some], window)
        for index, each in enumerate(some, low):
            for start, iov, _ in each.parts:
                iov.copy_out(address + size * index + start)
        if not any(failures):
            writes.start(some[0].host, window, partial(_pieces, some, window))
            continue
        for piece, each, failure in zip(_pieces(some, window), some, failures, strict=True):
            each.error = failure
            if failure is None:
                writes.start(each.host, piece[1], [piece].copy)


def _pieces(clusters: Sequence[_Cluster], window: IoVec) -> list[_Piece]:
    """Return the pieces of a run of clusters; each is a segment."""
    return [(each.host, window.segment(index), (each,)) for index, each in enumerate(clusters)]


def _runs(clusters: Sequence[_Cluster], size: int) -> list[tuple[int, int]]:
    """Return the ranges of clusters that are contiguous in the file, as (first, end)."""
    runs: list[tuple[int, int]] = []
    first, start = 0, clusters[0].host
    for index, cluster in enumerate(clusters):
        length = size * (index - first)
        if cluster.host != start + length or length >= MAX_RUN:
            runs.append((first, index))
            first, start = index, cluster.host
    runs.append((first, len(clusters)))
    return runs


def _covers(cluster: _Cluster, size: int) -> bool:
    """Return whether the guests' data fills a cluster."""
    parts = cluster.parts
    if len(parts) == 1:
        return parts[0][1].nbytes == size
    end = 0
    for start, iov, _ in sorted(parts, key=itemgetter(0)):
        if start > end:
            return False
        end = max(end, start + iov.nbytes)
    return end == size


class _Writes:
    """Concurrent writes to the data file."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._together = Together()
        #: Functions that return the pieces of each run.
        self._runs: list[Callable[[], list[_Piece]]] = []

    def start(self, host: int, iov: IoVec, run: Callable[[], list[_Piece]]) -> None:
        """Start to write a run; `run` returns its pieces."""
        self._runs.append(run)
        self._together.start(self._image.guest_data.write(host, iov))

    def start_all(self, pieces: list[_Piece]) -> None:
        """Start to write pieces, contiguous ones together."""
        runs: list[list[_Piece]] = []
        end = -1
        for piece in sorted(pieces, key=itemgetter(0)):
            if piece[0] == end and end - runs[-1][0][0] < MAX_RUN:
                runs[-1].append(piece)
            else:
                runs.append([piece])
            end = piece[0] + piece[1].nbytes
        for run in runs:
            whole = run[0][1] if len(run) == 1 else IoVec.concat([iov for _, iov, _ in run])
            self.start(run[0][0], whole, run.copy)

    async def finish(self) -> None:
        """Wait for all writes; record errors in the owners."""
        failures = await self._together.ended()
        if failures:
            self._image.commit.wrote()
        for run, failure in zip(self._runs, failures, strict=True):
            if failure is not None:
                await self._record_failure(run(), failure)

    async def _record_failure(self, run: list[_Piece], failure: BaseException) -> None:
        """Record the error of a run. A run of several pieces is first retried piece by piece."""
        failures: Failures = [failure]
        if len(run) > 1:
            failures = await gather([self._image.guest_data.write(at, iov) for at, iov, _ in run])
        for (_, _, owners), error in zip(run, failures, strict=True):
            for owner in owners if error is not None else ():
                owner.error = error


async def _link(image: Image, clusters: Sequence[_Cluster]) -> None:
    """Let L2 entries refer to the data; free the clusters that could not be filled."""
    mask = image.tables.entry_mask
    done: dict[int, int] = {}
    failed: list[_Cluster] = []
    for cluster in clusters:
        if cluster.error is not None:
            for _, _, request in cluster.parts:
                request.error = cluster.error
            failed.append(cluster)
            continue
        found, index = cluster.found, cluster.number & mask
        found.words[index] = cluster.host | COPIED
        found.touch(index, index + 1)
        done[cluster.number] = cluster.host
    image.publisher.written(done)
    await _give_back(image, failed)


async def _give_back(image: Image, clusters: Sequence[_Cluster]) -> None:
    """Free host clusters that nothing refers to."""
    for cluster in clusters:
        await image.allocator.free_bytes(cluster.host, 1)
