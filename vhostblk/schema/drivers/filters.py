# SPDX-License-Identifier: Apache-2.0
"""Options of the filters around copying: `compress`, `copy-before-write`, `copy-on-read`,
`preallocate` and `snapshot-access` (`qapi/block-core.json`).
"""  # noqa: D205 -- the names are the summary

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef
from vhostblk.schema.common import Size, Uint32  # noqa: TC001 (read at run time)


class BlockDirtyBitmap(QapiStruct, kw_only=True, frozen=True):
    """A dirty bitmap of a node."""

    node: str
    name: str


class OnCbwError(Enum):
    """The reaction if old data can't be copied before a write."""

    BREAK_GUEST_WRITE = "break-guest-write"
    BREAK_SNAPSHOT = "break-snapshot"


class BlockdevOptionsCompress(BlockdevOptions, tag="compress", kw_only=True, frozen=True):
    """A filter that stores writes compressed."""

    file: BlockdevRef


class BlockdevOptionsCbw(BlockdevOptions, tag="copy-before-write", kw_only=True, frozen=True):
    """A filter that copies old data to `target` before it is overwritten."""

    file: BlockdevRef
    target: BlockdevRef
    bitmap: BlockDirtyBitmap | UnsetType = UNSET
    on_cbw_error: OnCbwError = OnCbwError.BREAK_GUEST_WRITE
    #: In seconds; 0: no limit.
    cbw_timeout: Uint32 = 0
    min_cluster_size: Size = 0


class BlockdevOptionsCor(BlockdevOptions, tag="copy-on-read", kw_only=True, frozen=True):
    """A filter that copies data read from backing images to the image."""

    file: BlockdevRef
    #: The lowest image of the chain from which data is copied.
    bottom: str | UnsetType = UNSET


class BlockdevOptionsPreallocate(BlockdevOptions, tag="preallocate", kw_only=True, frozen=True):
    """A filter that extends a file in advance. In bytes; the defaults are 1 MiB and 128 MiB."""

    file: BlockdevRef
    prealloc_align: int | UnsetType = UNSET
    prealloc_size: int | UnsetType = UNSET


class BlockdevOptionsSnapshotAccess(
    BlockdevOptions, tag="snapshot-access", kw_only=True, frozen=True
):
    """The snapshot of a `copy-before-write` filter, as a disk."""

    file: BlockdevRef
