# SPDX-License-Identifier: Apache-2.0
"""Finding tables that are something else, too."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.block.drivers.qcow2.layout import COPIED, Geometry
from vhostblk.block.drivers.qcow2.overlap import NAMES, Overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 16
CLUSTERS = st.integers(0, 12)


def _overlap(
    l1: NDArray[np.uint64], reftable: NDArray[np.uint64], snapshots: tuple[int, ...] = ()
) -> Overlap:
    """Take stock of an image whose L1 and refcount table are in clusters 1 and 2."""
    image: Any = SimpleNamespace(
        header=SimpleNamespace(
            l1_offset=1 << BITS,
            l1_size=1,
            reftable_offset=2 << BITS,
            reftable_clusters=1,
            snapshots_offset=0,
            bitmaps=None,
        ),
        geometry=Geometry(3, BITS, 4, extended_l2=False, external_data=False),
        file=SimpleNamespace(node=SimpleNamespace(size=1 << 40)),
        snapshots=SimpleNamespace(
            entries=[SimpleNamespace(l1_offset=each << BITS, l1_size=1) for each in snapshots],
            table_bytes=0,
        ),
        tables=SimpleNamespace(l1=l1),
        refcounts=SimpleNamespace(table=reftable),
        settings=SimpleNamespace(overlap=frozenset(NAMES)),
    )
    overlap = Overlap(image)
    overlap.collect()
    return overlap


@given(
    st.lists(st.tuples(CLUSTERS, st.booleans())),
    st.lists(CLUSTERS),
    st.lists(CLUSTERS, max_size=3).map(tuple),
)
def test_contested_tables(
    tables: list[tuple[int, bool]], blocks: list[int], snapshots: tuple[int, ...]
) -> None:
    l1 = [cluster << BITS | COPIED * copied for cluster, copied in tables]
    overlap = _overlap(
        np.array(l1, np.uint64), np.array(blocks, np.uint64) << np.uint64(BITS), snapshots
    )
    other = Counter([0, 1, 2, *filter(None, blocks), *{*filter(None, snapshots)}])
    leading = Counter(cluster for cluster, _ in tables if cluster)
    copied = {cluster for cluster, flag in tables if cluster and flag}
    contested = {cluster for cluster, count in other.items() if count > 1}
    contested |= leading.keys() & other.keys()
    contested |= {cluster for cluster in copied if leading[cluster] > 1}
    assert overlap._contested.tolist() == sorted(contested)
    assert overlap._all_clusters().tolist() == sorted({*other, *leading})
    if snapshots:
        assert overlap._claimed.tolist() == sorted({*other, *copied})


def test_large_tables_take_no_longer_than_sorting_them() -> None:
    """The event loop waits for it."""
    count = 1 << 20
    clusters = np.random.default_rng(1).permutation(count).astype(np.uint64) + np.uint64(1000)
    l1 = clusters << np.uint64(BITS) | np.uint64(COPIED)
    ratios = []
    for _ in range(3):
        start = time.thread_time()
        np.sort(clusters)
        sorting = time.thread_time() - start
        _overlap(l1, l1[:0])._all_clusters()
        ratios.append((time.thread_time() - start - sorting) / sorting)
    assert min(ratios) < 60
