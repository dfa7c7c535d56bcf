# SPDX-License-Identifier: Apache-2.0
"""The plain cases of writing, in bursts: new clusters in a part of the file never used before.

What such a cluster needs is the guests' data and nothing else, or what the backing file has there,
read as a whole, with the guests' data put over it. A burst allocates once, reads once, writes runs
of clusters, and changes the tables. So these take a shorter way than `write` in general, and leave
to it whatever is not that plain. Requests whose clusters an earlier burst has allocated while they
waited go along. Streams are given clusters in advance (see `ahead`).
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from vhostblk.block.drivers.qcow2.layout import COPIED
from vhostblk.block.drivers.qcow2.transfer import gather
from vhostblk.block.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.scratch import Scratch
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.drivers.qcow2.write import Request


class _Cluster:
    """A guest cluster that nobody has, and what is written to it."""

    __slots__ = ("copied", "error", "found", "host", "number", "parts")

    def __init__(self, number: int, found: L2Slice) -> None:
        self.number = number
        self.found = found
        #: Where in the cluster, what, and whose it is; nothing where it is there in advance.
        self.parts: list[tuple[int, IoVec, Request]] = []
        #: The rest is the backing file's; else it reads as zeroes.
        self.copied = False
        self.host = 0
        self.error: BaseException | None = None


#: Pieces are joined up to this length. Of longer ones the page cache would make huge pages, which
#: are slow to come by: copying into them took five times as long on a machine whose free memory
#: is lent back to its host.
MAX_RUN = 512 << 10

#: Offset in the file, what is to be there, and who is to know if that fails.
_Piece = tuple[int, IoVec, "_Cluster | Request"]


async def write_fresh(image: Image, batch: Sequence[Request], scratch: Scratch) -> list[Request]:
    """Do what is plain of a batch; return the rest. Failures of data are noted in the requests."""
    await _load(image, batch)
    picked = _Picked(image)
    rest = [request for request in batch if not picked.take(request)]
    clusters = [each for each in picked.clusters.values() if each.parts]
    clusters.sort(key=attrgetter("number"))
    for end, count in image.streams.follow(each.number for each in clusters):
        clusters += _behind(image, end, count)
    for cluster in clusters:
        cluster.found.pins += 1
    try:
        if clusters and not await _allocate(image, clusters):
            return list(batch)
        pieces = picked.pieces + await _contents(image, clusters, scratch)
        if pieces:
            await _write(image, pieces)
        await _link(image, clusters)
    finally:
        for cluster in clusters:
            cluster.found.pins -= 1
    return rest


async def _load(image: Image, batch: Sequence[Request]) -> None:
    """Have the L2 slices at both ends of each request, as far as the cache keeps so many."""
    tables = image.tables
    for request in batch:
        for offset in (request.offset, request.stop - 1):
            if offset >> tables.span_bits not in tables.slices:
                try:
                    await image.ensure_table(offset)
                except OSError:
                    continue  # to be found out once more, and told


class _Picked:
    """What is plain of a batch."""

    def __init__(self, image: Image) -> None:
        geometry, allocator = image.geometry, image.allocator
        self._image = image
        self._possible = not geometry.extended_l2 and not geometry.external_data
        #: Whether new clusters will be where the file has never been used.
        self._fresh = image.grows_with_zeroes and allocator.hint >= allocator.high_water
        self.clusters: dict[int, _Cluster] = {}
        #: Of requests that just overwrite.
        self.pieces: list[_Piece] = []

    def take(self, request: Request) -> bool:
        """Take a request in, if it is plain."""
        if not self._possible:
            return False
        image, offset, iov = self._image, request.offset, request.iov
        bits = image.geometry.cluster_bits
        first, last = offset >> bits, request.stop - 1 >> bits
        if first == last:
            cluster = self.clusters.get(first) or self._cluster(first)
            if cluster is not None:
                cluster.parts.append((offset - (first << bits), iov, request))
                return True
        else:
            numbers = range(first, last + 1)
            found = [self.clusters.get(number) or self._cluster(number) for number in numbers]
            if all(found):
                for cluster in found:
                    assert cluster is not None
                    start = cluster.number << bits
                    low, high = max(offset, start), min(request.stop, start + (1 << bits))
                    part = iov.slice(low - offset, high - offset)
                    cluster.parts.append((low - start, part, request))
                return True
        host = image.publisher.overwritable(offset, iov.nbytes)
        if host >= 0:
            self.pieces.append((host, iov, request))
        return host >= 0

    def _cluster(self, number: int) -> _Cluster | None:
        """Begin with a cluster, if nobody has it."""
        tables = self._image.tables
        found = tables.slices.get(number >> tables.slice_bits)
        if (
            found is None
            or not self._fresh
            or found.words[number & ((1 << tables.slice_bits) - 1)]
            or not int(tables.l1[number >> self._image.geometry.l2_bits]) & COPIED
        ):
            return None
        found.used = True
        cluster = self.clusters[number] = _Cluster(number, found)
        return cluster


def _behind(image: Image, end: int, count: int) -> list[_Cluster]:
    """Return up to `count` clusters from `end` on, for a stream, that need no data."""
    tables, geometry = image.tables, image.geometry
    found = tables.slices.get(end >> tables.slice_bits)
    first = end & ((1 << tables.slice_bits) - 1)
    count = min(count, (1 << tables.slice_bits) - first, geometry.clusters(image.size) - end)
    if found is None or not first or count <= 0 or found.words[first : first + count].any():
        return []  # `first`: not where another slice begins, of which nothing is known
    start = end << geometry.cluster_bits
    length = min(count << geometry.cluster_bits, image.size - start)
    if image.backing is not None and not image.backing.known_zero(start, length):
        return []
    image.streams.given(end, count)
    return [_Cluster(number, found) for number in range(end, end + count)]


async def _allocate(image: Image, clusters: Sequence[_Cluster]) -> bool:
    """Find host clusters that read as zeroes; tell whether there are so many."""
    try:
        runs = await image.allocator.allocate(len(clusters))
    except OSError:
        return False  # to be found out once more, and told
    if not all(run.fresh for run in runs):
        for run in runs:
            await image.allocator.free(run)
        return False
    waiting, bits = iter(clusters), image.geometry.cluster_bits
    for run in runs:
        for host in range(run.first, run.first + run.length):
            next(waiting).host = host << bits
    return True


async def _contents(image: Image, clusters: Sequence[_Cluster], scratch: Scratch) -> list[_Piece]:
    """Return what is to be written to clusters, having read what lies beneath."""
    size, bits, backing = image.geometry.cluster_size, image.geometry.cluster_bits, image.backing
    pieces: list[_Piece] = []
    copied: list[_Cluster] = []
    for cluster in clusters:
        if backing is None or not cluster.parts or _covers(cluster, size):
            copy = False
        else:
            copy = not backing.known_zero(cluster.number << bits, size)
        if copy:
            copied.append(cluster)
        else:
            pieces += [(cluster.host + start, iov, cluster) for start, iov, _ in cluster.parts]
    if not copied or backing is None:
        return pieces
    places = [(size * index, size) for index in range(len(copied))]
    for index, cluster in enumerate(copied):
        places += [(size * index + start, iov.nbytes) for start, iov, _ in cluster.parts]
    windows = iter(scratch.windows(size * len(copied), places))
    whole = [next(windows) for _ in copied]
    reads = [
        backing.preadv(cluster.number << bits, window)
        for cluster, window in zip(copied, whole, strict=True)
    ]
    for cluster, window, failure in zip(copied, whole, await gather(reads), strict=True):
        cluster.error = failure
        for _, iov, _ in cluster.parts:
            iov.copy_to(next(windows))
        if failure is None:
            pieces.append((cluster.host, window, cluster))
    return pieces


def _covers(cluster: _Cluster, size: int) -> bool:
    """Tell whether the guests' data fills a cluster."""
    parts = cluster.parts
    if len(parts) == 1:
        return parts[0][1].nbytes == size
    end = 0
    for start, iov, _ in sorted(parts, key=itemgetter(0)):
        if start > end:
            return False
        end = max(end, start + iov.nbytes)
    return end == size


async def _write(image: Image, pieces: list[_Piece]) -> None:
    """Write all pieces, those that follow each other together; whose they are hears of errors."""
    runs: list[list[_Piece]] = []
    end = -1
    for piece in sorted(pieces, key=itemgetter(0)):
        if piece[0] == end and end - runs[-1][0][0] < MAX_RUN:
            runs[-1].append(piece)
        else:
            runs.append([piece])
        end = piece[0] + piece[1].nbytes
    writes = [
        image.data.pwritev(
            run[0][0], run[0][1] if len(run) == 1 else IoVec.concat([iov for _, iov, _ in run])
        )
        for run in runs
    ]
    failures = await gather(writes)
    image.commit.unsynced = True
    for run, failure in zip(runs, failures, strict=True):
        for _, _, owner in run if failure is not None else ():
            owner.error = failure


async def _link(image: Image, clusters: Sequence[_Cluster]) -> None:
    """Let L2 entries say where the data is; give back what could not be filled."""
    mask, changed = (1 << image.tables.slice_bits) - 1, image.publisher.changed
    for cluster in clusters:
        if cluster.error is not None:
            for _, _, request in cluster.parts:
                request.error = cluster.error
            await image.allocator.free_bytes(cluster.host, 1)
            continue
        found, index, word = cluster.found, cluster.number & mask, cluster.host | COPIED
        found.words[index] = word
        found.touch(index, index + 1)
        changed(found, index, cluster.number, word)
