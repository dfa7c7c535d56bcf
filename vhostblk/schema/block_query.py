# SPDX-License-Identifier: Apache-2.0
"""Results of the queries on nodes and their graph (`qapi/block-core.json`).

Members of older QAPI types have underscores in their names, which are part of the interface.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import field

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevDetectZeroesOptions  # noqa: TC001 (read at run time)
from vhostblk.schema.branches import Branches, Parts
from vhostblk.schema.common import Uint32, Uint64  # noqa: TC001 (read at run time)
from vhostblk.schema.driver_manifest import DRIVERS
from vhostblk.schema.snapshot import SnapshotInfo  # noqa: TC001 (read at run time)


def _as_written(name: str) -> str:
    """Return a member's name unchanged."""
    return name


class QueryNamedBlockNodes(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `query-named-block-nodes`."""

    #: Omit the backing images of images.
    flat: bool | UnsetType = UNSET


class QueryBlockstats(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `query-blockstats`."""

    #: All nodes instead of devices.
    query_nodes: bool | UnsetType = UNSET


class ImageInfoSpecific(QapiStruct, kw_only=True, frozen=True):
    """Information for one format."""

    type: str
    data: Any


class ImageInfo(QapiStruct, kw_only=True, frozen=True):
    """An image and its backing images."""

    filename: str
    format: str
    dirty_flag: bool | UnsetType = UNSET
    actual_size: int | UnsetType = UNSET
    virtual_size: int
    cluster_size: int | UnsetType = UNSET
    encrypted: bool | UnsetType = UNSET
    compressed: bool | UnsetType = UNSET
    backing_filename: str | UnsetType = UNSET
    full_backing_filename: str | UnsetType = UNSET
    backing_filename_format: str | UnsetType = UNSET
    snapshots: list[SnapshotInfo] | UnsetType = UNSET
    format_specific: ImageInfoSpecific | UnsetType = UNSET
    backing_image: ImageInfo | UnsetType = UNSET


class BlockdevCacheInfo(QapiStruct, kw_only=True, frozen=True):
    """The current cache modes."""

    writeback: bool
    direct: bool
    no_flush: bool


class BlockDirtyInfo(QapiStruct, kw_only=True, frozen=True):
    """A dirty bitmap; `count` in bytes, of whole granules."""

    name: str | UnsetType = UNSET
    count: int
    granularity: Uint32
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool | UnsetType = UNSET


class BlockDeviceInfo(
    QapiStruct,
    kw_only=True,
    frozen=True,
    rename={"node_name": "node-name", "dirty_bitmaps": "dirty-bitmaps"},
):
    """A node. `bps` and `iops` are limits of devices; nodes have none."""

    file: str
    node_name: str | UnsetType = UNSET
    ro: bool
    drv: str
    backing_file: str | UnsetType = UNSET
    backing_file_depth: int = 0
    active: bool
    encrypted: bool = False
    detect_zeroes: BlockdevDetectZeroesOptions
    bps: int = 0
    bps_rd: int = 0
    bps_wr: int = 0
    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0
    image: ImageInfo
    cache: BlockdevCacheInfo
    write_threshold: int = 0
    dirty_bitmaps: list[BlockDirtyInfo] | UnsetType = UNSET


class BlockInfo(QapiStruct, kw_only=True, frozen=True):
    """A device, with its medium if any; the storage daemon has no devices."""

    device: str
    qdev: str | UnsetType = UNSET
    type: str
    removable: bool
    locked: bool
    inserted: BlockDeviceInfo | UnsetType = UNSET


class BlockDeviceTimedStats(QapiStruct, kw_only=True, frozen=True, rename=_as_written):
    """Statistics of an interval, which are not collected."""

    interval_length: int


class BlockDeviceStats(QapiStruct, kw_only=True, frozen=True, rename=_as_written):
    """Statistics; times in nanoseconds."""

    rd_bytes: int = 0
    wr_bytes: int = 0
    zone_append_bytes: int = 0
    unmap_bytes: int = 0
    rd_operations: int = 0
    wr_operations: int = 0
    zone_append_operations: int = 0
    flush_operations: int = 0
    unmap_operations: int = 0
    rd_total_time_ns: int = 0
    wr_total_time_ns: int = 0
    zone_append_total_time_ns: int = 0
    flush_total_time_ns: int = 0
    unmap_total_time_ns: int = 0
    wr_highest_offset: int = 0
    rd_merged: int = 0
    wr_merged: int = 0
    zone_append_merged: int = 0
    unmap_merged: int = 0
    failed_rd_operations: int = 0
    failed_wr_operations: int = 0
    failed_zone_append_operations: int = 0
    failed_flush_operations: int = 0
    failed_unmap_operations: int = 0
    invalid_rd_operations: int = 0
    invalid_wr_operations: int = 0
    invalid_zone_append_operations: int = 0
    invalid_flush_operations: int = 0
    invalid_unmap_operations: int = 0
    account_invalid: bool = False
    account_failed: bool = False
    timed_stats: list[BlockDeviceTimedStats] = field(default_factory=list)


class BlockStatsSpecific(OpenUnion, tag_field="driver", kw_only=True, frozen=True):
    """Statistics of one driver."""

    @classmethod
    def find_branch(cls, tag: str) -> type[BlockStatsSpecific] | None:
        """Return the struct of a driver's statistics, or None."""
        found: type[BlockStatsSpecific] | None = _STATISTICS.find(tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of the drivers that have statistics."""
        return _STATISTICS.names()


_STATISTICS = Branches(Parts(DRIVERS, "statistics"), None, {})


class BlockStats(QapiStruct, kw_only=True, frozen=True):
    """Statistics of a node, and of the node with its data."""

    device: str | UnsetType = UNSET
    qdev: str | UnsetType = UNSET
    node_name: str | UnsetType = UNSET
    stats: BlockDeviceStats
    driver_specific: BlockStatsSpecific | UnsetType = UNSET
    parent: BlockStats | UnsetType = UNSET
    backing: BlockStats | UnsetType = UNSET


class XDbgBlockGraphNodeType(Enum):
    """The kind of a vertex of the graph."""

    BLOCK_BACKEND = "block-backend"
    BLOCK_JOB = "block-job"
    BLOCK_DRIVER = "block-driver"


class BlockPermission(Enum):
    """`BlockPermission`."""

    CONSISTENT_READ = "consistent-read"
    WRITE = "write"
    WRITE_UNCHANGED = "write-unchanged"
    RESIZE = "resize"


class XDbgBlockGraphNode(QapiStruct, kw_only=True, frozen=True):
    """A vertex."""

    id: Uint64
    type: XDbgBlockGraphNodeType
    name: str


class XDbgBlockGraphEdge(QapiStruct, kw_only=True, frozen=True):
    """An edge: `parent` uses `child` as its `name`."""

    parent: Uint64
    child: Uint64
    name: str
    perm: list[BlockPermission]
    shared_perm: list[BlockPermission]


class XDbgBlockGraph(QapiStruct, kw_only=True, frozen=True):
    """The whole graph."""

    nodes: list[XDbgBlockGraphNode]
    edges: list[XDbgBlockGraphEdge]
