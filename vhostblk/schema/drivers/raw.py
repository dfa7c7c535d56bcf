# SPDX-License-Identifier: Apache-2.0
"""Options of `raw` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class BlockdevOptionsRaw(BlockdevOptions, tag="raw", kw_only=True, frozen=True):
    """A window of another node."""

    file: BlockdevRef
    offset: int = 0
    size: int | UnsetType = UNSET
