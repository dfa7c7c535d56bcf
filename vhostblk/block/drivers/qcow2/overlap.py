# SPDX-License-Identifier: Apache-2.0
"""The clusters that hold metadata, to prevent writes to them by mistake (`overlap-check`).

In a corrupt image, guest data may overlap tables, tables may overlap each other, and a cluster in
use may be marked as free. All data clusters of an L2 slice are checked when the slice is loaded,
and again when a cluster becomes metadata later (`Image.become_metadata`). Allocations are checked
when they are made, tables before their first change. The L2 tables of snapshots are known only from
the file: they are read when first needed.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.gather import clusters_of, read_snapshot_tables, snapshot_tables
from vhostblk.block.drivers.qcow2.layout import COPIED, OFFSET_MASK, REFTABLE_OFFSET_MASK
from vhostblk.block.drivers.qcow2.ordered import grouped, in_both, repeated, sorted_once
from vhostblk.block.drivers.qcow2.pace import Pace
from vhostblk.block.drivers.qcow2.transfer import pieces
from vhostblk.errors import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image

logger = logging.getLogger(__name__)

#: The maximum number of L1 entries of snapshots to read.
_MAX_INACTIVE_ENTRIES = 16 << 20
#: The maximum number of L2 clusters of snapshots to remember.
_MAX_INACTIVE_CLUSTERS = 1 << 20

#: Option members, and the structures' names in messages, in the order of checking.
NAMES = {
    "main_header": "qcow2_header",
    "active_l1": "active L1 table",
    "refcount_table": "refcount table",
    "snapshot_table": "snapshot table",
    "inactive_l1": "inactive L1 table",
    "active_l2": "active L2 table",
    "refcount_block": "refcount block",
    "inactive_l2": "inactive L2 table",
    "bitmap_directory": "bitmap directory",
}
_L2_TABLES = ("active_l2", "inactive_l2")


class Overlap:
    """Clusters that hold metadata, by structure, for the structures that are checked."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._clusters: dict[str, NDArray[np.int64]] = {}
        #: Clusters added since, and their structures.
        self._added: dict[int, str] = {}
        #: All metadata clusters, sorted; None: to be computed.
        self._all: NDArray[np.int64] | None = None
        #: Sorted clusters of tables that overlap another structure, or each other.
        self._contested = np.zeros(0, np.int64)
        #: Clusters of the active disk's tables, without L2 tables shared with snapshots; for
        #: `complete`.
        self._claimed = np.zeros(0, np.int64)
        #: The L2 tables of snapshots must be checked but are unknown: `complete` must be called.
        self.incomplete = False

    def collect(self) -> None:
        """Collect the metadata clusters from the tables in memory."""
        image = self._image
        header, geometry, snapshots = image.header, image.geometry, image.snapshots.entries
        bits, l1, reftable = geometry.cluster_bits, image.tables.l1, image.refcounts.table
        self.incomplete = bool("inactive_l2" in image.settings.overlap and snapshots)
        self._added.clear()
        self._all = None

        def span(offset: int, nbytes: int) -> NDArray[np.int64]:
            return np.arange(offset >> bits, offset + nbytes + geometry.cluster_size - 1 >> bits)

        found = {
            "main_header": np.zeros(1, np.int64),
            "active_l1": span(header.l1_offset, 8 * header.l1_size),
            "refcount_table": span(header.reftable_offset, header.reftable_clusters << bits),
            "snapshot_table": span(header.snapshots_offset, image.snapshots.table_bytes),
            "inactive_l1": self._inactive_l1(),
            "refcount_block": _targets(reftable, REFTABLE_OFFSET_MASK, bits),
        }
        if header.bitmaps is not None:
            found["bitmap_directory"] = span(header.bitmaps.offset, header.bitmaps.size)
        if geometry.external_data:
            self._data_exempt = True
        # Several L1 entries may refer to one L2 table, as long as none may change it in place.
        leading = _pointers(l1, OFFSET_MASK)
        targets = _targets(leading, OFFSET_MASK, bits)
        tables, again, copied = grouped(targets, leading & np.uint64(COPIED) != 0)
        found["active_l2"] = tables
        shared = tables[again & copied]
        self._contested = repeated(np.concatenate([*found.values(), shared]))
        if self.incomplete:
            claimed = {**found, "active_l2": tables[copied]}
            self._claimed = sorted_once(np.concatenate([*claimed.values()]))
        self._clusters = {
            name: sorted_once(clusters)
            for name, clusters in found.items()
            if name in image.settings.overlap
        }

    _data_exempt = False

    def _inactive_l1(self) -> NDArray[np.int64]:
        """Return the clusters of the snapshots' L1 tables that are in the file."""
        image = self._image
        end = image.geometry.clusters(image.file.node.size)
        ranges = clusters_of(image.geometry.cluster_bits, snapshot_tables(image)).near(0, end)
        if int((ranges.stops - ranges.starts).sum()) > _MAX_INACTIVE_CLUSTERS:
            self._too_long()
            ranges = ranges.beginning(_MAX_INACTIVE_CLUSTERS)
        return ranges.listed()

    def _too_long(self) -> None:
        logger.warning(
            "%s: overlap-check covers only a part of the snapshots' L1 tables, which are too long",
            self._image.file.node.filename,
        )

    async def complete(self) -> None:
        """Read the L2 tables of snapshots; raises OSError."""
        image, left = self._image, _MAX_INACTIVE_ENTRIES
        found = np.zeros(0, np.int64)
        async for words, _ in read_snapshot_tables(image, Pace(image, "reading snapshots")):
            left -= len(words)
            if left < 0:
                self._too_long()
                break
            targets = _targets(words, OFFSET_MASK, image.geometry.cluster_bits)
            found = sorted_once(np.concatenate([found, targets]))
        self._clusters["inactive_l2"] = found
        contested = in_both(found, self._claimed)
        self._contested = sorted_once(np.concatenate([self._contested, contested]))
        self._all = None
        self.incomplete = False

    def offsets(self) -> NDArray[np.int64]:
        """Return the sorted offsets of clusters that must not hold guest data."""
        if self._data_exempt:
            return np.zeros(0, np.int64)
        return self._all_clusters() << self._image.geometry.cluster_bits

    def _all_clusters(self) -> NDArray[np.int64]:
        """Return all checked clusters, sorted."""
        if self._all is None:
            added = np.fromiter(self._added, np.int64, len(self._added))
            self._all = sorted_once(np.concatenate([*self._clusters.values(), added]))
        return self._all

    def metadata_added(self, first: int, count: int, what: str) -> bool:
        """Record that clusters hold metadata from now on; `what` is a key of `NAMES`.

        Return whether that structure is checked. Call `Image.become_metadata` before writing there.
        """
        if what not in self._image.settings.overlap:
            return False
        for cluster in range(first, first + count):
            self._added[cluster] = what
        self._all = None
        return True

    def metadata_removed(self, first: int, count: int) -> None:
        """Record that clusters no longer hold metadata of the active disk."""
        last = first + count
        for cluster in range(first, last):
            self._added.pop(cluster, None)
        for name, clusters in self._clusters.items():
            if not name.startswith("inactive"):
                self._clusters[name] = clusters[(clusters < first) | (clusters >= last)]
        contested = self._contested
        self._contested = contested[(contested < first) | (contested >= last)]
        self._all = None

    def structure_at(self, first: int, count: int, *besides: str) -> str | None:
        """Return the name of a structure, not in `besides`, that contains one of these clusters."""
        for cluster in range(first, first + count) if len(self._added) >= count else ():
            if cluster in self._added:
                return NAMES[self._added[cluster]]
        for cluster, what in self._added.items() if len(self._added) < count else ():
            if first <= cluster < first + count:
                return NAMES[what]
        for name, text in NAMES.items():
            clusters = self._clusters.get(name)
            if clusters is not None and name not in besides and _has(clusters, first, count):
                return text
        return None

    def check_table(self, what: str, offset: int, length: int) -> None:
        """Raise OSError(EIO), and mark the image corrupt, if a table overlaps other metadata.

        Call this before changing a part of the table; `what` is a key of `NAMES`.
        """
        bits = self._image.geometry.cluster_bits
        first = offset >> bits
        count = (offset + length - 1 >> bits) - first + 1
        if not len(self._contested) or not _has(self._contested, first, count):
            return
        found = self.structure_at(first, count, what)
        if found is None and what in self._image.settings.overlap:
            found = NAMES[what]  # two tables of this kind overlap
        if found is not None:
            self._refuse(found, offset, length)

    def are_contested(self, offsets: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each offset whether its cluster is a table that overlaps other metadata."""
        clusters = (offsets >> np.uint64(self._image.geometry.cluster_bits)).astype(np.int64)
        return np.isin(clusters, self._contested)

    def check_tree(self, l1: NDArray[np.uint64]) -> None:
        """Call `check_table` for all L2 tables that `l1` refers to."""
        bits = self._image.geometry.cluster_bits
        targets = sorted_once(_targets(l1, OFFSET_MASK, bits))
        for name, text in NAMES.items():
            if name in _L2_TABLES or name not in self._clusters:
                continue
            hit = in_both(targets, self._clusters[name])
            if len(hit):
                self._refuse(text, int(hit[0]) << bits, 1 << bits)
        for cluster in in_both(targets, self._contested).tolist():
            self.check_table("active_l2", cluster << bits, 1 << bits)

    def check_freed(self, clusters: NDArray[np.int64]) -> None:
        """Raise OSError(EIO), and mark the image corrupt, if sorted clusters hold metadata.

        They have just become free.
        """
        known = self._all_clusters()
        if not len(known) or known[0] > clusters[-1] or known[-1] < clusters[0]:
            return
        places = np.minimum(np.searchsorted(known, clusters), len(known) - 1)
        for cluster in clusters[known[places] == clusters].tolist():
            self._check(cluster, 1)

    def check_allocation(self, first: int, count: int) -> None:
        """Raise OSError(EIO), and mark the image corrupt, if free clusters hold metadata."""
        self._check(first, count)

    def check_data(self, offset: int, length: int) -> None:
        """Raise OSError(EIO), and mark the image corrupt, if guest data would hit metadata."""
        if self._data_exempt or not length:
            return
        bits = self._image.geometry.cluster_bits
        first = offset >> bits
        self._check(first, (offset + length - 1 >> bits) - first + 1)

    def _check(self, first: int, count: int) -> None:
        if not _has(self._all_clusters(), first, count):
            return
        found = self.structure_at(first, count)
        if found is not None:
            bits = self._image.geometry.cluster_bits
            self._refuse(found, first << bits, count << bits)

    def _refuse(self, found: str, offset: int, length: int) -> None:
        text = f"Preventing invalid write on metadata (overlaps with {found})"
        self._image.corruption(text, offset, length)
        raise os_error(errno.EIO)


def _has(clusters: NDArray[np.int64], first: int, count: int) -> bool:
    """Return whether a sorted array contains one of `count` clusters from `first` on."""
    place = int(clusters.searchsorted(first))
    return place < len(clusters) and int(clusters[place]) < first + count


def _targets(table: NDArray[np.uint64], mask: int, bits: int) -> NDArray[np.int64]:
    """Return the clusters that a table's entries refer to."""
    offsets = _pointers(table, mask) & np.uint64(mask)
    clusters: NDArray[np.int64] = (offsets >> np.uint64(bits)).astype(np.int64)
    return clusters


def _pointers(table: NDArray[np.uint64], mask: int) -> NDArray[np.uint64]:
    """Return the entries of a table that aren't empty."""
    found = [part[part & np.uint64(mask) != 0] for part in pieces(table)]
    return np.concatenate([np.zeros(0, np.uint64), *found])
