# SPDX-License-Identifier: Apache-2.0
"""A model of a disk's content, and random operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from vhostblk.block import SECTOR

if TYPE_CHECKING:
    from vhostblk.plugin.testing.disk import Disk

#: Ranges begin near one of this many sectors, so that they overlap.
_SECTORS = 48


class Step(NamedTuple):
    """One operation; `fill` is the byte to write."""

    kind: str
    offset: int
    length: int
    fill: int


def steps(size: int) -> st.SearchStrategy[list[Step]]:
    """Return lists of operations on a disk."""
    sectors = size // SECTOR
    starts = st.integers(0, min(sectors, _SECTORS) - 1) | st.integers(
        max(sectors - _SECTORS, 0), sectors - 1
    )
    kinds = st.sampled_from(("write", "write", "read", "write_zeroes", "discard", "flush"))

    def make(kind: str, start: int, count: int, fill: int) -> Step:
        return Step(kind, start * SECTOR, min(count, sectors - start) * SECTOR, fill)

    step = st.builds(make, kinds, starts, st.integers(1, _SECTORS), st.integers(1, 255))
    return st.lists(step, min_size=1, max_size=20)


class Model:
    """The bytes, and which of them are undefined after a discard."""

    def __init__(self, content: bytes) -> None:
        self._bytes = bytearray(content)
        self._known = bytearray(b"\1" * (len(content) // SECTOR))

    async def follow(self, disk: Disk, step: Step) -> None:
        """Do an operation on disk and model; compare every range that it can have changed."""
        kind, offset, length, fill = step
        stop = offset + length
        known = slice(offset // SECTOR, stop // SECTOR)
        if kind == "write":
            data = bytes((fill + index // SECTOR) & 0xFF for index in range(length))
            await disk.write(offset, data)
            self._bytes[offset:stop] = data
            self._known[known] = b"\1" * (length // SECTOR)
        elif kind == "write_zeroes":
            await disk.write_zeroes(offset, length)
            self._bytes[offset:stop] = bytes(length)
            self._known[known] = b"\1" * (length // SECTOR)
        elif kind == "discard":
            await disk.discard(offset, length)
            self._known[known] = bytes(length // SECTOR)
        elif kind == "flush":
            await disk.flush()
        await self._compare(disk, max(offset - 8 * SECTOR, 0), min(stop + 8 * SECTOR, disk.size))

    async def _compare(self, disk: Disk, start: int, stop: int) -> None:
        found = await disk.read(start, stop - start)
        for sector in range(start // SECTOR, stop // SECTOR):
            low = sector * SECTOR
            if self._known[sector]:
                assert found[low - start :][:SECTOR] == self._bytes[low : low + SECTOR], (
                    f"sector {sector} does not hold what was written"
                )
            else:  # defined from now on
                self._bytes[low : low + SECTOR] = found[low - start :][:SECTOR]
                self._known[sector] = 1
