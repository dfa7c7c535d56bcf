# SPDX-License-Identifier: Apache-2.0
"""Refcounts of many clusters change together, or none does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.block.qcow2.test_counting import BLOCKS, geometry_of, make
from vhostblk.block.drivers.qcow2 import refcount_changes
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.refcount_changes import (
    change_refcounts,
    check_refcounts,
    refcounts_of,
)
from vhostblk.block.drivers.qcow2.references import References

#: Clusters, in sixteenths of all, a little more, and how much is added to each.
CHANGES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), max_size=6),
        st.sampled_from([1, 1, 2, 5, 300]),
        st.sampled_from([1, 1, -1]),
    ),
    max_size=10,
)


def _image(order: int) -> Any:
    refcounts, _, _ = make(order, limit=BLOCKS)
    file = SimpleNamespace(node=SimpleNamespace(filename="test"))
    return SimpleNamespace(refcounts=refcounts, geometry=geometry_of(order), file=file)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), CHANGES, st.sampled_from([0, 1000]), st.sampled_from([64, 1 << 16]))
@example(6, [([(3, 1)], 1, 1), ([(3, 1), (15, 3)], 1, -1)], 0, 64)
def test_changes_are_those_of_a_list(
    order: int, changes: list[tuple[list[tuple[int, int]], int, int]], near: int, window: int
) -> None:
    """`near`: how many clusters have their counts of references in an array."""
    image = _image(order)
    total = BLOCKS << image.geometry.refblock_bits
    model = [0] * total

    async def main() -> None:
        pace = Pace(image, "testing")
        for places, weight, sign in changes:
            clusters = [place * (total // 16) + more for place, more in places]
            references, after = References(near), model.copy()
            references.add(np.array(clusters, np.int64), weight)
            for cluster in clusters:
                after[cluster] += sign * weight
            if min(after) < 0 or max(after) > image.geometry.refcount_max:
                for work in (check_refcounts, change_refcounts):
                    with pytest.raises(OSError, match=r"corrupt|Invalid argument"):
                        await work(image, references, sign, pace)
            else:
                await check_refcounts(image, references, sign, pace)
                freed = await change_refcounts(image, references, sign, pace)
                expected = [each for each in sorted({*clusters}) if not after[each]]
                assert [each for part in freed for each in part.tolist()] == expected
                model[:] = after
            backwards = np.arange(total - 1, -1, -1)
            found = (await refcounts_of(image, backwards)).tolist()
            assert found[::-1] == model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refcount_changes, "_WINDOW", window)
        asyncio.run(main())


def test_clusters_without_a_refcount_block() -> None:
    image = _image(4)
    references = References(0)
    references.add(np.array([1, (BLOCKS + 5) << image.geometry.refblock_bits]))

    async def main() -> None:
        pace = Pace(image, "testing")
        with pytest.raises(OSError, match="no refcount"):
            await change_refcounts(image, references, 1, pace)
        clusters = np.array([1, (BLOCKS + 5) << image.geometry.refblock_bits, 0])
        assert (await refcounts_of(image, clusters)).tolist() == [0, 0, 0]

    asyncio.run(main())
