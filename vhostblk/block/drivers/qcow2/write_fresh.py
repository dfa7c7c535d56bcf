# SPDX-License-Identifier: Apache-2.0
"""The plain case of allocation: clusters that nobody has, in a part of the file never used before.

What a burst of such writes needs is the guests' data and nothing else: nothing is read, nothing
filled up, nothing given up. So they take a shorter way than `write` in general, and leave to it
whatever is not that plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.drivers.qcow2.layout import COPIED
from vhostblk.block.drivers.qcow2.transfer import gather
from vhostblk.block.iovec import IoVec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.block.drivers.qcow2.image import Image
    from vhostblk.block.drivers.qcow2.tables import L2Slice
    from vhostblk.block.drivers.qcow2.write import Request


class _Fresh(NamedTuple):
    """A request for a part of one cluster that nobody has."""

    cluster: int
    request: Request
    found: L2Slice


async def write_fresh(image: Image, batch: Sequence[Request]) -> list[Request]:
    """Do what is plain of a batch; return the rest. Failures of data are noted in the requests."""
    plain, rest = _pick(image, batch)
    if not plain:
        return rest
    plain.sort(key=lambda each: each.cluster)
    for each in plain:
        each.found.pins += 1
    try:
        hosts = await _allocate(image, len(plain))
        if hosts:
            await _write(image, plain, hosts)
    finally:
        for each in plain:
            each.found.pins -= 1
    return rest if hosts else list(batch)


def _pick(image: Image, batch: Sequence[Request]) -> tuple[list[_Fresh], list[Request]]:
    geometry, allocator, tables = image.geometry, image.allocator, image.tables
    plain: list[_Fresh] = []
    if (
        geometry.extended_l2
        or geometry.external_data
        or allocator.hint < allocator.high_water
        or not image.grows_with_zeroes
    ):
        return plain, list(batch)
    bits, size, backing = geometry.cluster_bits, geometry.cluster_size, image.backing
    slice_bits, mask = tables.slice_bits, (1 << tables.slice_bits) - 1
    users: dict[int, int] = {}
    for request in batch:
        for cluster in range(request.offset >> bits, (request.stop - 1 >> bits) + 1):
            users[cluster] = users.get(cluster, 0) + 1
    rest: list[Request] = []
    for request in batch:
        offset, cluster = request.offset, request.offset >> bits
        found = tables.slices.get(cluster >> slice_bits)
        if (
            found is None
            or (request.stop - 1) >> bits != cluster
            or users[cluster] != 1
            or found.words[cluster & mask]
            or not int(tables.l1[cluster >> geometry.l2_bits]) & COPIED
            or not (
                backing is None
                or request.stop - offset == size
                or backing.known_zero(cluster << bits, size)
            )
        ):
            rest.append(request)
        else:
            found.used = True
            plain.append(_Fresh(cluster, request, found))
    return plain, rest


async def _allocate(image: Image, count: int) -> list[int]:
    """Return offsets of host clusters that read as zeroes; none where there are not so many."""
    try:
        runs = await image.allocator.allocate(count)
    except OSError:
        return []  # to be found out once more, and told
    if not all(run.fresh for run in runs):
        for run in runs:
            await image.allocator.free(run)
        return []
    bits = image.geometry.cluster_bits
    return [cluster << bits for run in runs for cluster in range(run.first, run.first + run.length)]


async def _write(image: Image, plain: list[_Fresh], hosts: list[int]) -> None:
    """Write data, then let the L2 entries say where it is."""
    inside = image.geometry.cluster_size - 1
    runs: list[tuple[int, list[int]]] = []
    end = -1
    for number, (each, host) in enumerate(zip(plain, hosts, strict=True)):
        start = host + (each.request.offset & inside)
        if start == end:
            runs[-1][1].append(number)
        else:
            runs.append((start, [number]))
        end = start + each.request.iov.nbytes

    def joined(numbers: list[int]) -> IoVec:
        if len(numbers) == 1:
            return plain[numbers[0]].request.iov
        return IoVec.concat([plain[number].request.iov for number in numbers])

    failures = await gather([image.data.pwritev(start, joined(numbers)) for start, numbers in runs])
    image.commit.unsynced = True
    mask, changed = (1 << image.tables.slice_bits) - 1, image.publisher.changed
    for (_, numbers), failure in zip(runs, failures, strict=True):
        for number in numbers:
            each = plain[number]
            if failure is not None:
                each.request.error = failure
                await image.allocator.free_bytes(hosts[number], 1)
                continue
            index, word = each.cluster & mask, hosts[number] | COPIED
            each.found.words[index] = word
            each.found.touch(index, index + 1)
            changed(each.found, index, each.cluster, word)
