# SPDX-License-Identifier: Apache-2.0
"""Options of `blkdebug` (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.block_query import BlockPermission  # noqa: TC001 (read at run time)
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef
from vhostblk.schema.common import Int32  # noqa: TC001 (read at run time)


class BlkdebugEvent(Enum):
    """The events of drivers and of the layer above them."""

    L1_UPDATE = "l1_update"
    L1_GROW_ALLOC_TABLE = "l1_grow_alloc_table"
    L1_GROW_WRITE_TABLE = "l1_grow_write_table"
    L1_GROW_ACTIVATE_TABLE = "l1_grow_activate_table"
    L2_LOAD = "l2_load"
    L2_UPDATE = "l2_update"
    L2_UPDATE_COMPRESSED = "l2_update_compressed"
    L2_ALLOC_COW_READ = "l2_alloc_cow_read"
    L2_ALLOC_WRITE = "l2_alloc_write"
    READ_AIO = "read_aio"
    READ_BACKING_AIO = "read_backing_aio"
    READ_COMPRESSED = "read_compressed"
    WRITE_AIO = "write_aio"
    WRITE_COMPRESSED = "write_compressed"
    VMSTATE_LOAD = "vmstate_load"
    VMSTATE_SAVE = "vmstate_save"
    COW_READ = "cow_read"
    COW_WRITE = "cow_write"
    REFTABLE_LOAD = "reftable_load"
    REFTABLE_GROW = "reftable_grow"
    REFTABLE_UPDATE = "reftable_update"
    REFBLOCK_LOAD = "refblock_load"
    REFBLOCK_UPDATE = "refblock_update"
    REFBLOCK_UPDATE_PART = "refblock_update_part"
    REFBLOCK_ALLOC = "refblock_alloc"
    REFBLOCK_ALLOC_HOOKUP = "refblock_alloc_hookup"
    REFBLOCK_ALLOC_WRITE = "refblock_alloc_write"
    REFBLOCK_ALLOC_WRITE_BLOCKS = "refblock_alloc_write_blocks"
    REFBLOCK_ALLOC_WRITE_TABLE = "refblock_alloc_write_table"
    REFBLOCK_ALLOC_SWITCH_TABLE = "refblock_alloc_switch_table"
    CLUSTER_ALLOC = "cluster_alloc"
    CLUSTER_ALLOC_BYTES = "cluster_alloc_bytes"
    CLUSTER_FREE = "cluster_free"
    FLUSH_TO_OS = "flush_to_os"
    FLUSH_TO_DISK = "flush_to_disk"
    PWRITEV_RMW_HEAD = "pwritev_rmw_head"
    PWRITEV_RMW_AFTER_HEAD = "pwritev_rmw_after_head"
    PWRITEV_RMW_TAIL = "pwritev_rmw_tail"
    PWRITEV_RMW_AFTER_TAIL = "pwritev_rmw_after_tail"
    PWRITEV = "pwritev"
    PWRITEV_ZERO = "pwritev_zero"
    PWRITEV_DONE = "pwritev_done"
    EMPTY_IMAGE_PREPARE = "empty_image_prepare"
    L1_SHRINK_WRITE_TABLE = "l1_shrink_write_table"
    L1_SHRINK_FREE_L2_CLUSTERS = "l1_shrink_free_l2_clusters"
    COR_WRITE = "cor_write"
    CLUSTER_ALLOC_SPACE = "cluster_alloc_space"
    #: Once, when the node is created.
    NONE = "none"


class BlkdebugIOType(Enum):
    """The type of a request to the node."""

    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block-status"


class BlkdebugInjectErrorOptions(QapiStruct, kw_only=True, frozen=True):
    """A rule by which requests fail after an event, until an event of another such rule."""

    event: BlkdebugEvent
    #: The required state of the node; 0: any state.
    state: int = 0
    #: UNSET: all types except block-status.
    iotype: BlkdebugIOType | UnsetType = UNSET
    errno: int = 5
    #: The duration of a failing request.
    delay_ns: int = 0
    #: Requests that touch this sector of 512 bytes; -1: all.
    sector: int = -1
    once: bool = False
    #: Fail before the request has been suspended.
    immediately: bool = False


class BlkdebugSetStateOptions(QapiStruct, kw_only=True, frozen=True):
    """A rule by which an event changes the state of the node."""

    event: BlkdebugEvent
    state: int = 0
    new_state: int = field(name="new_state")


class BlockdevOptionsBlkdebug(BlockdevOptions, tag="blkdebug", kw_only=True, frozen=True):
    """A filter that injects errors and reduces limits; 0 is the default of a limit."""

    image: BlockdevRef
    config: str | UnsetType = UNSET
    align: int = 0
    max_transfer: Int32 = 0
    opt_write_zero: Int32 = 0
    max_write_zero: Int32 = 0
    opt_discard: Int32 = 0
    max_discard: Int32 = 0
    inject_error: list[BlkdebugInjectErrorOptions] = field(default_factory=list)
    set_state: list[BlkdebugSetStateOptions] = field(default_factory=list)
    take_child_perms: list[BlockPermission] = field(default_factory=list)
    unshare_child_perms: list[BlockPermission] = field(default_factory=list)
