# SPDX-License-Identifier: Apache-2.0
"""Options of `test-dice`, its options for creation, and its statistics."""

from __future__ import annotations

from vhostblk.schema.block_query import BlockStatsSpecific
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.create import BlockdevCreateOptions


class DiceOptions(BlockdevOptions, tag="test-dice", kw_only=True, frozen=True):
    """The value of the bytes."""

    side: int = 6


class DiceCreateOptions(BlockdevCreateOptions, tag="test-dice", kw_only=True, frozen=True):
    """The file that creation writes."""

    path: str


class DiceStatistics(BlockStatsSpecific, tag="test-dice", kw_only=True, frozen=True):
    """The number of throws."""

    throws: int = 0
