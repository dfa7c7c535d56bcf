# SPDX-License-Identifier: Apache-2.0
"""Options of `test-dice`, those of creating one, and its statistics."""

from __future__ import annotations

from vhostblk.schema.block_query import BlockStatsSpecific
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.create import BlockdevCreateOptions


class DiceOptions(BlockdevOptions, tag="test-dice", kw_only=True, frozen=True):
    """Which side is up."""

    side: int = 6


class DiceCreateOptions(BlockdevCreateOptions, tag="test-dice", kw_only=True, frozen=True):
    """Where the word goes that a new one makes."""

    path: str


class DiceStatistics(BlockStatsSpecific, tag="test-dice", kw_only=True, frozen=True):
    """How often it was thrown."""

    throws: int = 0
