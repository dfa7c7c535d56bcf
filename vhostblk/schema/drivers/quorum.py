# SPDX-License-Identifier: Apache-2.0
"""Options and events of `quorum` (`qapi/block-core.json`)."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.blockdev import BlockdevOptions, BlockdevRef


class QuorumReadPattern(Enum):
    """Whom reads go to."""

    #: All children, who vote.
    QUORUM = "quorum"
    #: The first, then the next if that failed.
    FIFO = "fifo"


class BlockdevOptionsQuorum(BlockdevOptions, tag="quorum", kw_only=True, frozen=True):
    """Several copies of one disk."""

    blkverify: bool = False
    children: list[BlockdevRef]
    vote_threshold: int
    rewrite_corrupted: bool = False
    read_pattern: QuorumReadPattern = QuorumReadPattern.QUORUM


class QuorumOpType(Enum):
    """What a child failed at."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class QuorumFailure(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `QUORUM_FAILURE`: too few children agree."""

    #: The quorum's name.
    reference: str
    sector_num: int
    sectors_count: int


class QuorumReportBad(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `QUORUM_REPORT_BAD`: a child failed, or is of another opinion."""

    type: QuorumOpType
    #: UNSET: it read other data than the majority.
    error: str | UnsetType = UNSET
    node_name: str
    sector_num: int
    sectors_count: int
