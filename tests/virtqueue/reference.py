# SPDX-License-Identifier: Apache-2.0
"""The judge of all walkers: descriptor chains taken one descriptor at a time, as plainly as can be.

`walk_chains` reads the same memory as the walker under test and says what each chain is. It knows
nothing of numpy batches or of C structures; `chains_of` brings a `RequestBatch` into its terms.

The verdict of a chain, where it breaks several rules: ORDER before UNMAPPED before whatever ended
the walk. The segments of a broken chain are those walked up to there; of one with an ORDER fault,
those before the violation.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue.errors import ChainFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhostblk.virtqueue.batch import RequestBatch
    from vhostblk.virtqueue.memory import GuestMemory

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4

#: What a chain, and an indirect table, may have at most.
MAX_DESCRIPTORS = 1024

#: How many regions one buffer may touch.
MAX_REGIONS_OF_A_BUFFER = 8


class Region(NamedTuple):
    """Guest memory [guest, guest + size), to be found at `host`."""

    guest: int
    size: int
    host: int


class Segment(NamedTuple):
    """A run of host memory; `host` is 0 where the guest named memory that it doesn't have."""

    host: int
    length: int
    writable: bool


class Chain(NamedTuple):
    """One chain and the verdict on it."""

    head: int
    fault: ChainFault
    segments: list[Segment]


def regions_of(memory: GuestMemory) -> list[Region]:
    """Say where guest memory is."""
    return [Region(r.guest_addr, r.size, r.mapping.address) for r in memory.regions]


def walk_chains(
    heads: Iterable[int], table_host: int, queue_size: int, regions: Sequence[Region]
) -> list[Chain]:
    """Walk the chains at `heads` of the descriptor table at host address `table_host`."""
    return [_walk_chain(head, table_host, queue_size, regions) for head in heads]


def chains_of(batch: RequestBatch) -> list[Chain]:
    """Express what a walker found in this module's terms."""
    chains = []
    for number, head in enumerate(batch.heads.tolist()):
        first, count = int(batch.first[number]), int(batch.count[number])
        readable = int(batch.readable[number])
        rows: list[tuple[int, int]] = batch.iovs[first : first + count].tolist()
        segments = [
            Segment(base, length, place >= readable) for place, (base, length) in enumerate(rows)
        ]
        chains.append(Chain(head, ChainFault(int(batch.faults[number])), segments))
    return chains


def _walk_chain(head: int, table: int, entries: int, regions: Sequence[Region]) -> Chain:
    buffers, fault = _follow(head, table, entries, regions)
    return finish_chain(head, buffers, fault, regions)


def finish_chain(
    head: int,
    buffers: Iterable[tuple[int, int, bool]],
    fault: ChainFault,
    regions: Sequence[Region],
) -> Chain:
    """Judge a chain's buffers of (guest address, length, writable); `fault` ended the walk."""
    segments: list[Segment] = []
    for addr, length, writable in buffers:
        if segments and segments[-1].writable and not writable:
            return Chain(head, ChainFault.ORDER, segments)
        pieces = _locate(addr, length, regions)
        if pieces is None:
            fault = ChainFault.UNMAPPED
            pieces = [(0, length)]
        segments += [Segment(host, piece, writable) for host, piece in pieces]
    return Chain(head, fault, segments)


def _follow(
    head: int, table: int, entries: int, regions: Sequence[Region]
) -> tuple[list[tuple[int, int, bool]], ChainFault]:
    """Return a chain's buffers (guest address, length, writable), and what ended the walk."""
    buffers: list[tuple[int, int, bool]] = []
    current, inside = head, False
    while True:
        raw = view_memory(table + current * _DESCRIPTOR.size, _DESCRIPTOR.size)
        addr, length, flags, following = _DESCRIPTOR.unpack(raw)
        if flags & _INDIRECT:
            if inside or flags & _NEXT:
                return buffers, ChainFault.INDIRECT_NESTED
            if length == 0 or length % 16 or length > MAX_DESCRIPTORS * 16:
                return buffers, ChainFault.INDIRECT_LENGTH
            found = in_one_region(addr, length, regions)
            if found is None:
                return buffers, ChainFault.INDIRECT_UNMAPPED
            table, entries, current, inside = found, length // 16, 0, True
        else:
            buffers.append((addr, length, bool(flags & _WRITE)))
            if not flags & _NEXT:
                return buffers, ChainFault.NONE
            if len(buffers) >= MAX_DESCRIPTORS:
                return buffers, ChainFault.TOO_LONG
            if following >= entries:
                return buffers, ChainFault.NEXT_OUT_OF_RANGE
            current = following


def in_one_region(addr: int, length: int, regions: Sequence[Region]) -> int | None:
    """Translate a range that lies in one region."""
    for region in regions:
        offset = addr - region.guest
        if 0 <= offset < region.size and offset + length <= region.size:
            return region.host + offset
    return None


def _locate(addr: int, length: int, regions: Sequence[Region]) -> list[tuple[int, int]] | None:
    """Translate a buffer into (host address, length) pieces; None where part of it is missing."""
    if length == 0:
        return [(in_one_region(addr, 0, regions) or 0, 0)]
    pieces: list[tuple[int, int]] = []
    while length:
        for region in regions:
            if region.guest <= addr < region.guest + region.size:
                break
        else:
            return None
        taken = min(length, region.guest + region.size - addr)
        pieces.append((region.host + addr - region.guest, taken))
        addr, length = addr + taken, length - taken
    return pieces if len(pieces) <= MAX_REGIONS_OF_A_BUFFER else None
