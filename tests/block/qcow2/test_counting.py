# SPDX-License-Identifier: Apache-2.0
"""Refcounts of all widths are counted correctly, in memory and in the file."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.layout import Geometry
from vhostblk.block.drivers.qcow2.refcounts import Refcounts, unpack

if TYPE_CHECKING:
    from vhostblk.block.io.iovec import IoVec

#: The number of refcount blocks; they are at the beginning of the file.
BLOCKS = 4


class File:
    """Replaces the edge to a file by bytes in memory."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    async def preadv(self, offset: int, iov: IoVec) -> None:
        iov.copy_from(self.data[offset : offset + iov.nbytes])


def geometry_of(order: int) -> Geometry:
    # A block has two sectors; only changed ones are written.
    return Geometry(3, 10, order, extended_l2=False, external_data=False)


def make(order: int, limit: int = 2) -> tuple[Refcounts, File, list[str]]:
    geometry = geometry_of(order)
    file: Any = File((BLOCKS + 1) * geometry.cluster_size)
    table = np.arange(1, BLOCKS + 1, dtype=np.uint64) * np.uint64(geometry.cluster_size)
    refcounts = Refcounts(file, geometry, table, limit)
    corrupt: list[str] = []
    refcounts.corrupt = corrupt.append
    return refcounts, file, corrupt


def write_back(refcounts: Refcounts, file: File) -> None:
    for block in refcounts.dirty_blocks():
        offset, raw = refcounts.encode(block)
        file.data[offset : offset + len(raw)] = raw.tobytes()
        block.clean()


def in_the_file(file: File, order: int) -> list[int]:
    size = geometry_of(order).cluster_size
    raw = np.frombuffer(bytes(file.data[size:]), np.uint8)
    counts: list[int] = unpack(raw, order).tolist()
    return counts


@settings(max_examples=60)
@given(
    st.integers(0, 6),
    st.lists(
        st.tuples(
            st.integers(0, 15),
            st.sampled_from([1, 2, 7, 40, 300]),
            st.sampled_from([1, 1, -1, 0]),
        ),
        min_size=1,
        max_size=12,
    ),
)
@example(4, [(3, 40, 1), (0, 1, 0), (3, 7, -1)])
@example(0, [(9, 300, 1), (0, 1, 0), (9, 300, -1)])
def test_changes_count_and_get_to_the_file(order: int, changes: list[tuple[int, int, int]]) -> None:
    """A change by 0 stands for writing dirty blocks; changes out of range are refused.

    There are few clusters, so most are changed more than once.
    """

    async def main() -> None:
        refcounts, file, corrupt = make(order)
        geometry = geometry_of(order)
        model = [0] * (BLOCKS << geometry.refblock_bits)
        for place, wanted, by in changes:
            first = place * len(model) // 16
            count = min(wanted, len(model) - first)
            part = model[first : first + count]
            if not by:
                write_back(refcounts, file)
                assert in_the_file(file, order) == model
                continue
            if max(part) + by > geometry.refcount_max or min(part) + by < 0:
                before = [await refcounts.get(cluster) for cluster in range(first, first + count)]
                assert before == part
                continue
            freed = await refcounts.change(first, count, by)
            model[first : first + count] = [each + by for each in part]
            assert freed.tolist() == [
                first + index for index, each in enumerate(part) if by < 0 and each + by == 0
            ]
            assert await refcounts.get(first) == model[first]
        write_back(refcounts, file)
        assert in_the_file(file, order) == model
        assert not corrupt

    asyncio.run(main())


@pytest.mark.parametrize("order", range(4))
def test_no_count_goes_over_its_width_or_below_zero(order: int) -> None:
    async def main() -> None:
        refcounts, _, corrupt = make(order)
        highest = geometry_of(order).refcount_max
        for _ in range(highest):
            await refcounts.change(5, 1, 1)
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- the errno is checked
            await refcounts.change(5, 1, 1)
        assert caught.value.errno == errno.ERANGE
        assert await refcounts.get(5) == highest
        assert not corrupt
        with pytest.raises(OSError):  # noqa: PT011 -- the errno is checked
            await refcounts.change(6, 1, -1)
        assert await refcounts.get(6) == 0
        assert corrupt == ["Cluster 0x6 is in use and has refcount 0"]

    asyncio.run(main())


@pytest.mark.parametrize("order", range(7))
def test_what_becomes_free_in_several_blocks(order: int) -> None:
    async def main() -> None:
        refcounts, _, _ = make(order)
        per_block = 1 << geometry_of(order).refblock_bits
        first, count = per_block - 3, per_block + 6
        await refcounts.change(first, count, 1)
        if order:
            await refcounts.change(per_block, 2, 1)
        freed = (await refcounts.change(first, count, -1)).tolist()
        kept = range(per_block, per_block + 2) if order else ()
        assert freed == [each for each in range(first, first + count) if each not in kept]

    asyncio.run(main())
