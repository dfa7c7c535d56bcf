# SPDX-License-Identifier: Apache-2.0
"""Options of `throttle` (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class BlockdevOptionsThrottle(BlockdevOptions, tag="throttle", kw_only=True, frozen=True):
    """A node whose requests share the limits of a throttle group."""

    throttle_group: str
    file: BlockdevRef
