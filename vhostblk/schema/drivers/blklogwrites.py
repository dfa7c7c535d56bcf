# SPDX-License-Identifier: Apache-2.0
"""Options of `blklogwrites` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef
from vhostblk.schema.common import Uint32, Uint64  # noqa: TC001 (read at run time)


class BlockdevOptionsBlklogwrites(BlockdevOptions, tag="blklogwrites", kw_only=True, frozen=True):
    """A filter that logs all writes to `file` in the format of Linux's dm-log-writes."""

    file: BlockdevRef
    log: BlockdevRef
    #: In bytes; also the granularity of writes. UNSET: 512, or that of the existing log.
    log_sector_size: Uint32 | UnsetType = UNSET
    log_append: bool = False
    #: A number of writes.
    log_super_update_interval: Uint64 = 4096
