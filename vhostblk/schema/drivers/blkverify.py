# SPDX-License-Identifier: Apache-2.0
"""Options of `blkverify` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class BlockdevOptionsBlkverify(BlockdevOptions, tag="blkverify", kw_only=True, frozen=True):
    """Compares what `test` reads with `raw`, a copy."""

    test: BlockdevRef
    raw: BlockdevRef
