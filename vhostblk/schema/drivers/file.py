# SPDX-License-Identifier: Apache-2.0
"""Options of `file` and `host_device` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.common import BlockdevAioOptions, OnOffAuto


class BlockdevOptionsFile(BlockdevOptions, tag="file", kw_only=True, frozen=True):
    """A regular file; `host_device` has the same members."""

    filename: str
    #: The object that sends persistent reservation commands.
    pr_manager: str | UnsetType = UNSET
    locking: OnOffAuto = OnOffAuto.AUTO
    aio: BlockdevAioOptions | UnsetType = UNSET
    aio_max_batch: int = 0
    drop_cache: bool = True
    x_check_cache_dropped: bool = False


class BlockdevOptionsHostDevice(BlockdevOptionsFile, tag="host_device", kw_only=True, frozen=True):
    """A block device of the host."""
