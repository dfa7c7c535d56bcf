# SPDX-License-Identifier: Apache-2.0
"""Options of `blkverify` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class BlockdevOptionsBlkverify(BlockdevOptions, tag="blkverify", kw_only=True, frozen=True):
    """A filter that compares the data of `test` with that of `raw`, a copy."""

    test: BlockdevRef
    raw: BlockdevRef
