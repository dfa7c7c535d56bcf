# SPDX-License-Identifier: Apache-2.0
"""Which clusters of the file are metadata, so that no write hits them by mistake (`overlap-check`).

An image may say that guest data lies where its own tables are, or that a cluster is free which is
not. Data clusters are checked when their L2 slice is loaded, all at once; allocations when made.
The L2 tables of snapshots are only known from the file: they are looked up when first needed.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import numpy as np

from vhostblk.block.drivers.qcow2.layout import OFFSET_MASK, REFTABLE_OFFSET_MASK
from vhostblk.block.drivers.qcow2.references import cluster_spans
from vhostblk.block.drivers.qcow2.transfer import read_array
from vhostblk.block.edge import os_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.block.drivers.qcow2.image import Image

logger = logging.getLogger(__name__)

#: So many L1 entries of snapshots are looked at; an image can have too many for that.
_MAX_INACTIVE_ENTRIES = 16 << 20

#: Option members and what messages call the structure.
NAMES = {
    "main_header": "qcow2_header",
    "active_l1": "active L1 table",
    "active_l2": "active L2 table",
    "refcount_table": "refcount table",
    "refcount_block": "refcount block",
    "snapshot_table": "snapshot table",
    "inactive_l1": "inactive L1 table",
    "inactive_l2": "inactive L2 table",
    "bitmap_directory": "bitmap directory",
}


class Overlap:
    """Metadata clusters by structure, as far as they are checked."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._clusters: dict[str, NDArray[np.int64]] = {}
        #: Added since: cluster and structure.
        self._added: dict[int, str] = {}
        #: All of them, sorted; None: to be put together.
        self._all: NDArray[np.int64] | None = None
        #: The L2 tables of snapshots are to be checked and not known: `complete` is to be called.
        self.incomplete = False

    def collect(self) -> None:
        """Take stock of the metadata that is known from tables in memory."""
        image = self._image
        self.incomplete = bool("inactive_l2" in image.settings.overlap and image.snapshots.entries)
        header, geometry = image.header, image.geometry
        bits = geometry.cluster_bits
        self._added.clear()
        self._all = None

        def span(offset: int, nbytes: int) -> NDArray[np.int64]:
            return cluster_spans(bits, [offset], [nbytes])

        snapshots = image.snapshots.entries

        found = {
            "main_header": np.zeros(1, np.int64),
            "active_l1": span(header.l1_offset, 8 * header.l1_size),
            "active_l2": _targets(image.tables.l1, OFFSET_MASK, bits),
            "refcount_table": span(
                header.reftable_offset, header.reftable_clusters * geometry.cluster_size
            ),
            "refcount_block": _targets(image.refcounts.table, REFTABLE_OFFSET_MASK, bits),
            "snapshot_table": span(header.snapshots_offset, image.snapshots.table_bytes),
            "inactive_l1": cluster_spans(
                bits,
                [each.l1_offset for each in snapshots],
                [8 * each.l1_size for each in snapshots],
            ),
        }
        if header.bitmaps is not None:
            found["bitmap_directory"] = span(header.bitmaps.offset, header.bitmaps.size)
        if geometry.external_data:
            self._data_exempt = True
        self._clusters = {
            name: np.unique(clusters)
            for name, clusters in found.items()
            if name in image.settings.overlap
        }

    _data_exempt = False

    async def complete(self) -> None:
        """Look up the L2 tables of snapshots; raises OSError."""
        image, left = self._image, _MAX_INACTIVE_ENTRIES
        found = np.zeros(0, np.int64)
        for offset, size in dict.fromkeys(
            (each.l1_offset, each.l1_size) for each in image.snapshots.entries
        ):
            left -= size
            if left < 0:
                logger.warning(
                    "%s: the snapshots' L1 tables are too long for overlap-check to know them all",
                    image.file.node.filename,
                )
                break
            table = await read_array(image.file, offset, size, ">u8")
            targets = _targets(table.astype(np.uint64), OFFSET_MASK, image.geometry.cluster_bits)
            found = np.union1d(found, targets)
        self._clusters["inactive_l2"] = found
        self._all = None
        self.incomplete = False

    def offsets(self) -> NDArray[np.int64]:
        """Return the sorted offsets of clusters on which no guest data may lie."""
        if self._data_exempt:
            return np.zeros(0, np.int64)
        return self._all_clusters() << self._image.geometry.cluster_bits

    def _all_clusters(self) -> NDArray[np.int64]:
        """Return all that is checked, sorted."""
        if self._all is None:
            added = np.fromiter(self._added, np.int64, len(self._added))
            self._all = np.unique(np.concatenate([*self._clusters.values(), added]))
        return self._all

    def metadata_added(self, first: int, count: int, what: str) -> None:
        """Note that clusters hold metadata from now on; `what`: a key of `NAMES`."""
        if what in self._image.settings.overlap:
            for cluster in range(first, first + count):
                self._added[cluster] = what
            self._all = None

    def metadata_removed(self, first: int, count: int) -> None:
        """Note that clusters don't hold metadata of the active disk any more."""
        last = first + count
        for cluster in range(first, last):
            self._added.pop(cluster, None)
        for name, clusters in self._clusters.items():
            if not name.startswith("inactive"):
                self._clusters[name] = clusters[(clusters < first) | (clusters >= last)]
        self._all = None

    def structure_at(self, first: int, count: int) -> str | None:
        """Name the structure that one of these clusters belongs to."""
        for cluster in range(first, first + count) if len(self._added) >= count else ():
            if cluster in self._added:
                return NAMES[self._added[cluster]]
        for cluster, what in self._added.items() if len(self._added) < count else ():
            if first <= cluster < first + count:
                return NAMES[what]
        for name, clusters in self._clusters.items():
            place = int(np.searchsorted(clusters, first))
            if place < len(clusters) and int(clusters[place]) < first + count:
                return NAMES[name]
        return None

    def check_allocation(self, first: int, count: int) -> None:
        """Raise OSError(EIO), and mark the image corrupt, where free clusters hold metadata."""
        self._check(first, count)

    def check_data(self, offset: int, length: int) -> None:
        """Do so where guest data is to be written over metadata."""
        if self._data_exempt or not length:
            return
        bits = self._image.geometry.cluster_bits
        first = offset >> bits
        self._check(first, (offset + length - 1 >> bits) - first + 1)

    def _check(self, first: int, count: int) -> None:
        clusters = self._all_clusters()
        place = clusters.searchsorted(first)
        if place == len(clusters) or int(clusters[place]) >= first + count:
            return
        found = self.structure_at(first, count)
        if found is not None:
            bits = self._image.geometry.cluster_bits
            self._image.corruption(
                f"Preventing invalid write on metadata (overlaps with {found})",
                first << bits,
                count << bits,
            )
            raise os_error(errno.EIO)


def _targets(table: NDArray[np.uint64], mask: int, bits: int) -> NDArray[np.int64]:
    """Return the clusters that a table's entries point to."""
    offsets = table & np.uint64(mask)
    clusters: NDArray[np.int64] = (offsets[offsets != 0] >> np.uint64(bits)).astype(np.int64)
    return clusters
